"""One parallel pass over the rows of a file -> arrays, kept in a cache; a pass that was killed goes on where it was."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sightline.data.inspect import Source, look
from sightline.data.stored import key_of
from sightline.data.surveyed import Survey, as_bytes, as_lines, joined, keep_block, kept_blocks, mapped, store
from sightline.errors import UserError
from sightline.limits import Limits, limits, use
from sightline.prompt.prompter import Prompter
from sightline.runtime import calm_tokenizers, cores
from sightline.terminal import printable

BLOCK = 1024
"""Rows that are looked at, and stored, at a time: what a kill loses of each process's work."""


def survey(source: Source, console: Console, cache: Path | None) -> Survey:
    """Look at all rows of a source, or read from the cache what was seen in them before."""
    folder = cache / f"index-{_key(source)}" if cache is not None else None
    known = mapped(folder) if folder is not None else None
    if known is not None and known.holds():
        return known
    blocks = kept_blocks(folder)
    numbers = range(-(-source.looked_at // BLOCK))
    todo = [number for number in numbers if number not in blocks]
    if todo and (blocks or known is not None):
        why = "images have changed since" if known is not None else "an earlier look was broken off"
        _say(console, source, f"{why}; {len(todo):,} of {len(numbers):,} parts are looked at")
    begun = time.monotonic()
    for number, block in _progress(_looked(source, todo), source, len(blocks), console):
        blocks[number] = block
        if folder is not None and not keep_block(block, folder, number):
            folder = None
    if todo and time.monotonic() - begun > 60:
        _say(console, source, f"{source.looked_at:,} rows in {time.monotonic() - begun:.0f} s")
    result = joined([blocks[number] for number in numbers])
    return store(result, folder) if folder is not None else result


def _say(console: Console, source: Source, what: str) -> None:
    console.print(printable(f"{source.name}: {what}"), markup=False, soft_wrap=True)


def _key(source: Source) -> str:
    """Everything that what is seen in the rows depends on, but the images, which are `watched`."""
    images = os.path.abspath(source.images) if source.images is not None else None
    facts = (source.rows.fingerprint, source.looked_at, images, source.images, source.form)
    judged_by = (limits().image_megapixels, source.decode, _code_key())
    return key_of(*facts, source.max_length, _prompter_key(source.prompter), *judged_by)


def _prompter_key(prompter: Prompter | None) -> str:
    if prompter is None:
        return "none"
    tokenizer = prompter.tokenizer
    specials = (tokenizer.bos_token, tokenizer.eos_token, *tokenizer.all_special_tokens)
    images = (prompter.tokens_per_image, prompter.tiles)
    return key_of(tokenizer.backend_tokenizer.to_str(), specials, prompter.template, images)


def _code_key() -> str:
    """The code that reads, renders and judges rows, byte for byte, and the packages that it relies on."""
    here = Path(__file__).parent
    names = ("inspect", "formats", "mistakes", "sources", "survey", "surveyed", "tables", "verdict")
    files = [here / f"{name}.py" for name in names]
    files += [*here.glob("forms/*.py"), *here.parent.glob("prompt/*.py"), here.parent / "types.py"]
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(files):
        digest.update(file.read_bytes())
    return key_of(digest.hexdigest(), *(metadata.version(name) for name in ("tokenizers", "pillow")))


def _looked(source: Source, todo: Sequence[int]) -> Iterator[tuple[int, Survey]]:
    processes = min(cores(), len(todo))
    if processes < 2 or len(todo) < 3:
        yield from ((number, _block(source, number)) for number in todo)
        return
    calm_tokenizers()
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(processes, context, _begin, (source, limits(), os.getpid()))
    try:
        futures = {pool.submit(_block_of_this_process, number): number for number in todo}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            f"{source.name}: a process that looked at rows was killed, perhaps for want of memory; start again, it "
            "goes on where it was"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_source: Source | None = None
"""Of a worker process: what it looks at."""


def _begin(source: Source, these: Limits, parent: int) -> None:
    import signal

    global _source
    _source = source
    use(these)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, and it reports
    gc.freeze()  # what was inherited stays shared: the collector would touch, and so copy, every page of it

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _block_of_this_process(number: int) -> Survey:
    assert _source is not None
    return _block(_source, number)


def _block(source: Source, number: int) -> Survey:
    rows = range(number * BLOCK, min((number + 1) * BLOCK, source.looked_at))
    watched: dict[str, int] = {}
    looks = []
    for row in rows:
        try:
            looks.append(look(source, row, watched))
        except Exception as error:
            error.add_note(f"while looking at {source.rows.origin(row)}")
            raise
    lines = as_lines((row, finding) for row, one in zip(rows, looks, strict=True) for finding in one.findings)
    return Survey(
        tokens=np.array([one.tokens for one in looks], dtype=np.int32),
        targets=np.array([one.targets for one in looks], dtype=np.int32),
        images=np.array([len(one.sizes) for one in looks], dtype=np.int32),
        bad=np.array([one.bad for one in looks], dtype=bool),
        digests=np.array([one.digest for one in looks], dtype=np.uint64),
        sizes=np.array([size for one in looks for size in one.sizes], dtype=np.int32).reshape(-1, 2),
        found=as_bytes(lines),
        watched=as_bytes(json.dumps(watched)),
    )


def _progress(
    looked: Iterator[tuple[int, Survey]], source: Source, known: int, console: Console
) -> Iterator[tuple[int, Survey]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begun, done = time.monotonic(), 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(
            f"Checking {source.rows.path.name}", total=source.looked_at, completed=known * BLOCK, rate=""
        )
        for number, block in looked:
            done += len(block.tokens)
            progress.update(task, advance=len(block.tokens), rate=f"{done / (time.monotonic() - begun):,.0f} rows/s")
            yield number, block
