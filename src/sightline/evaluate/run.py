"""Questions -> answers, in batches, kept in a folder from which a run that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sightline.errors import DataError, UserError
from sightline.evaluate.save import save_json, to_json
from sightline.evaluate.task import Question
from sightline.files import hold
from sightline.runtime import console, say, versions
from sightline.types import ImageRef

if TYPE_CHECKING:
    from sightline.model.load import VLM

ANSWERS = "answers.jsonl"

BATCHES_BETWEEN_SAVES = 4
"""A kill loses at most this many batches of answers."""


def unaskable(vlm: VLM, questions: Sequence[Question], *, max_new_tokens: int) -> dict[int, str]:
    """The questions (by their place) that the model cannot be asked, and why: above all, its context has no room."""
    from sightline.model.load import positions

    limit = positions(vlm.model.config.text_config)
    reasons = {}
    for number, question in enumerate(questions):
        try:
            length = len(vlm.prompter.encode(question.messages).ids)
        except DataError as error:
            reasons[number] = str(error)
            continue
        if limit is not None and length + max_new_tokens > limit:
            reasons[number] = (
                f"the question takes {length} tokens and its answer up to {max_new_tokens}, but the model sees "
                f"{limit}: shorten the question, or lower --max-new-tokens"
            )
    return reasons


def answer(
    vlm: VLM,
    questions: Sequence[Question],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    folder: Path | None = None,
) -> list[str]:
    """The model's greedy answers, in the order of the questions, without blanks around them.

    With a folder, answers are appended to its `answers.jsonl` as they come, in the order of asking, and those already
    there are not asked for again; the caller sees to it that they are of the same model and questions (`start_folder`).
    """
    order = _by_images(questions)
    questions = [questions[number] for number in order]
    with nullcontext() if folder is None else _alone(folder / ANSWERS) as file:
        answers = _asked(vlm, questions, file, batch_size=batch_size, max_new_tokens=max_new_tokens, stop=stop)
    of = dict(zip(order, answers, strict=True))
    return [of[number] for number in range(len(order))]


def _asked(
    vlm: VLM,
    questions: Sequence[Question],
    file: IO[bytes] | None,
    *,
    batch_size: int,
    max_new_tokens: int,
    stop: Sequence[str],
) -> list[str]:
    """The answers to questions in this order, those in the file first."""
    from sightline.model.batched import replies

    answers = _answered(file, questions) if file is not None else []
    if answers:
        say(f"{len(answers)} questions are answered already; going on after them")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("Answering", total=len(questions), completed=len(answers))
        while len(answers) < len(questions):
            part = questions[len(answers) : len(answers) + batch_size * BATCHES_BETWEEN_SAVES]
            texts = replies(
                vlm,
                [question.messages for question in part],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                stop=stop,
                on_done=lambda number: progress.advance(bar, number),
            )
            new = [text.strip() for text in texts]
            if file is not None:
                _append(file, part, new, start=len(answers))
            answers += new
            progress.update(bar, completed=len(answers))
    return answers


def _alone(file: Path) -> IO[bytes]:
    """The file of answers, held by this process until it is closed."""
    try:
        return hold(file)
    except BlockingIOError:
        raise UserError(
            f"another process is answering the same questions into {file.parent}; wait for it, or choose another "
            f"--work-dir"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror})") from error


def _by_images(questions: Sequence[Question]) -> list[int]:
    """The order to ask in: questions about the same images one after the other, so that these are encoded once."""
    first: dict[tuple[ImageRef, ...], int] = {}
    places = []
    for number, question in enumerate(questions):
        parts = (part for message in question.messages for part in message.content)
        images = tuple(part for part in parts if isinstance(part, ImageRef))
        places.append(first.setdefault(images, number) if images else number)
    return sorted(range(len(questions)), key=places.__getitem__)


def start_folder(work_dir: str | Path, settings: Mapping[str, object], fingerprint: str, *, last_file: str) -> Path:
    """The folder of this run below `work_dir`, named by the time, with `args.json` in it.

    A folder of the same fingerprint that was begun and never got its `last_file` is taken up again.
    """
    work_dir = Path(work_dir)
    for args in sorted(work_dir.glob("*/args.json"), reverse=True):
        if not (args.parent / last_file).exists() and _read_fingerprint(args) == fingerprint:
            return args.parent
    stamp = time.strftime("%Y%m%d_%H%M%S")
    folder = work_dir / stamp
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        for number in range(2, 1000):
            try:
                folder.mkdir()
                break
            except FileExistsError:
                folder = work_dir / f"{stamp}_{number}"
    except OSError as error:
        raise UserError(f"cannot make a folder for the results in {work_dir} ({error.strerror})") from error
    save_json(folder / "args.json", {**settings, "fingerprint": fingerprint, "versions": versions()})
    return folder


def fingerprint_of(vlm: VLM, questions: Sequence[Question], settings: Mapping[str, object]) -> str:
    """Changes when an answer may have changed: with the model, its template, what it sees of pictures, the questions.

    Images count by their bytes or, where they are files, by path, size and time. Of each weight the first 256 numbers
    are looked at; an optimiser's step changes them all.
    """
    import torch

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for part in (vlm.prompter.template, vlm.prompter.image_processor, vlm.model.config):
        digest.update(repr(part).encode())
    for name, weight in vlm.model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().reshape(-1)[:256].to("cpu", torch.float32).numpy().tobytes())
    for question in questions:
        digest.update(json.dumps([question.id, question.truth]).encode())
        for message in question.messages:
            for part in message.content:
                if isinstance(part, ImageRef):
                    digest.update(hashlib.sha256(_identity_of(part)).digest())
                else:
                    digest.update(f"{message.role}: {part.text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _identity_of(image: ImageRef) -> bytes:
    if isinstance(image.source, bytes):
        return image.source
    path = Path(image.folder or "", image.source)
    state = path.stat() if path.is_file() else None  # a URL is none
    return f"{path} {state and (state.st_size, state.st_mtime_ns)}".encode()


def _answered(file: IO[bytes], questions: Sequence[Question]) -> list[str]:
    """The answers that are there already; the file is cut off at the first line that is damaged, as by a kill."""
    answers: list[str] = []
    good = 0
    file.seek(0)
    for line, question in zip(file.read().splitlines(keepends=True), questions, strict=False):
        text = _answer_in(line, len(answers), question)
        if text is None:
            break
        answers.append(text)
        good += len(line)
    file.truncate(good)
    return answers


def _answer_in(line: bytes, number: int, question: Question) -> str | None:
    """The answer in a line of the file; None where the line is damaged, or of another question."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(entry, dict) or (entry.get("n"), entry.get("id")) != (number, question.id):
        return None
    text = entry.get("answer")
    return text if isinstance(text, str) else None


def _append(file: IO[bytes], questions: Sequence[Question], answers: Sequence[str], *, start: int) -> None:
    entries = [
        {"n": number, "id": question.id, "answer": text}
        for number, (question, text) in enumerate(zip(questions, answers, strict=True), start)
    ]
    try:
        file.writelines(map(to_json, entries))
        file.flush()
    except OSError as error:
        raise UserError(f"cannot write {file.name} ({error.strerror})") from error


def _read_fingerprint(args: Path) -> object:
    try:
        settings = json.loads(args.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings.get("fingerprint") if isinstance(settings, dict) else None
