"""The sets of a recipe -> one index of all their rows: a line for each, bad ones included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from sightline.data.inspect import Source
from sightline.data.mixes import MixEntry, is_mix, mix_entries
from sightline.data.sources import Tail, open_rows
from sightline.data.survey import survey
from sightline.data.surveyed import Survey
from sightline.data.verdict import Finding
from sightline.errors import DataError
from sightline.prompt.prompter import Prompter, template_named
from sightline.recipe import DataRecipe
from sightline.runtime import cache_folder, rank, rank_0_first, say

Cache = Path | Literal["user"] | None
"""Where what was seen is kept: a folder, the folder `index` in `runtime.cache_folder()`, or nowhere."""


@dataclass(frozen=True)
class Index:
    """A line for every row that was looked at, bad ones included; the sources one behind the other."""

    sources: tuple[Source, ...]
    surveys: tuple[Survey, ...]
    """What is known of the rows of each source."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [sources + 1]: the first line of each source."""
        return np.cumsum([0, *(len(one.tokens) for one in self.surveys)])

    @cached_property
    def where(self) -> np.ndarray:
        """int64 [N, 2]: source and row (from 0) of each line."""
        counts = np.diff(self.starts)
        rows = np.arange(len(self)) - self.starts[:-1].repeat(counts)
        return np.stack([np.arange(len(counts)).repeat(counts), rows], axis=1)

    @cached_property
    def tokens(self) -> np.ndarray:
        """int32 [N], after cutting at max_length; 0 where a row could not be understood, or without a tokenizer."""
        return self._all("tokens")

    @cached_property
    def targets(self) -> np.ndarray:
        """int32 [N]"""
        return self._all("targets")

    @cached_property
    def images(self) -> np.ndarray:
        """int32 [N]: how many"""
        return self._all("images")

    @cached_property
    def bad(self) -> np.ndarray:
        """bool [N]"""
        return self._all("bad")

    @cached_property
    def digests(self) -> np.ndarray:
        """uint64 [N] of what each row says and shows; 0 where it could not be understood."""
        return self._all("digests")

    @cached_property
    def sizes(self) -> np.ndarray:
        """int32 [M, 2]: width and height of every image, upright; (0, 0) where it cannot be read."""
        return self._all("sizes")

    @cached_property
    def first_image(self) -> np.ndarray:
        """int64 [N + 1]: `sizes[first_image[n] : first_image[n + 1]]` are those of line n."""
        return np.concatenate([[0], np.cumsum(self.images, dtype=np.int64)])

    def _all(self, name: str) -> np.ndarray:
        arrays = [getattr(one, name) for one in self.surveys]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def origin(self, source: int, row: int) -> str:
        """How messages call a row."""
        return self.sources[source].rows.origin(row)

    def findings(self) -> Iterator[tuple[int, int, Finding]]:
        """Source, row (from 0) and finding, in the order of the rows; rows that say and show the same among them."""
        again = self._duplicates()
        for number, one in enumerate(self.surveys):
            found = defaultdict(list)
            for row, finding in one.findings():
                found[row].append(finding)
            for row, finding in again[number].items():
                found[row].append(finding)
            for row in sorted(found):
                yield from ((number, row, finding) for finding in found[row])

    def _duplicates(self) -> dict[int, dict[int, Finding]]:
        """For each source, its rows that an earlier row equals. A file that is listed twice is meant twice."""
        again: dict[int, dict[int, Finding]] = {number: {} for number in range(len(self.sources))}
        seen = {(source.rows.path, source.images): number for number, source in reversed([*enumerate(self.sources)])}
        first_listed = np.isin(self.where[:, 0], list(seen.values()))
        lines = np.flatnonzero(first_listed & (self.digests != 0))
        _, first, which = np.unique(self.digests[lines], return_index=True, return_inverse=True)
        originals = lines[first[which]]
        is_copy = lines != originals
        for line, original in zip(lines[is_copy], originals[is_copy], strict=True):
            source, row = self.where[line].tolist()
            reason = f"the same as {self.origin(*self.where[original].tolist())}"
            again[source][row] = Finding("duplicate", reason)
        return again

    def samples(self, seed: int) -> np.ndarray:
        """int64 [S]: the usable lines that make an epoch, in order: of each source its share, repeated."""
        chosen = [np.tile(lines[~self.bad[lines]], source.repeat) for source, lines in self._chosen(seed)]
        return np.concatenate(chosen)

    def bad_lines(self, seed: int) -> np.ndarray:
        """int64: the lines that would belong to an epoch, were they usable."""
        return np.concatenate([lines[self.bad[lines]] for _, lines in self._chosen(seed)])

    def _chosen(self, seed: int) -> Iterator[tuple[Source, np.ndarray]]:
        for number, source in enumerate(self.sources):
            lines = np.arange(self.starts[number], self.starts[number + 1])
            if source.ratio < 1:
                # Bad rows take part in the draw, so that mending one does not change the others.
                count = max(1, round(len(lines) * source.ratio))
                draw = np.random.Generator(np.random.PCG64([seed, number])).permutation(len(lines))
                lines = lines[np.sort(draw[:count])]
            yield source, lines

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.sources, self.surveys)  # without what was computed from them


def open_index(
    entries: Sequence[DataRecipe],
    prompter: Prompter | None,
    max_length: int | None,
    console: Console,
    cache: Cache = "user",
    *,
    decode: bool = False,
) -> Index:
    """Look at every row and every image of all sets, or read from the cache what was seen in them before.

    `decode`: all pixels of every image, which for JPEGs and PNGs takes 10 to 500 times as long.
    Rank 0 looks, the other ranks map what it stored. Raises DataError where a file or a folder is missing or damaged
    as a whole; a bad row is a finding.
    """
    folder = cache_folder() / "index" if cache == "user" else cache

    def opened() -> Index:
        sources = open_sources(entries, prompter, max_length, cache)
        sources = tuple(replace(source, decode=decode) for source in sources)
        return Index(sources, tuple(survey(source, console, folder) for source in sources))

    return rank_0_first(opened)


def open_sources(
    entries: Sequence[DataRecipe], prompter: Prompter | None, max_length: int | None, cache: Cache = "user"
) -> tuple[Source, ...]:
    """The files of all sets, found and opened, none of their rows looked at."""
    folder = cache_folder() / "index" if cache == "user" else cache
    return tuple(source for entry in entries for source in _open(entry, prompter, max_length, folder))


def _open(entry: DataRecipe, prompter: Prompter | None, max_length: int | None, cache: Path | None) -> Iterator[Source]:
    """The files that an entry stands for: its own, those of a known set, of an InternVL meta file, of a mix."""
    from sightline.data.meta import is_meta, meta_entries

    if entry.template is not None and prompter is not None:
        prompter = _with_template(prompter, entry.template)

    def source(path: str, images: str | None, form: str | None, repeat: float = 1) -> Source:
        rows = open_rows(path, cache)
        if images is not None and not Path(images).is_dir():
            raise DataError(f"the folder of images {images} of {path} is missing", "image_missing")
        looked_at = len(rows) if repeat >= 1 else max(1, int(len(rows) * repeat))
        return Source(
            name=path,
            rows=rows,
            images=images,
            prompter=prompter,
            max_length=max_length,
            form=form,
            repeat=entry.repeat * max(1, int(repeat)),
            ratio=entry.ratio,
            on_bad_row=entry.on_bad_row,
            looked_at=looked_at if entry.head is None else min(entry.head, looked_at),
        )

    if entry.use is not None:
        from sightline.data.layouts import known_entries

        root = entry.root or "data"
        for file in known_entries(entry.use, root):
            for path in (file.path, file.images):
                if not Path(path).exists():
                    prepare = f"sightline data prepare {entry.use} --root {root}"
                    raise DataError(f"{path}, which belongs to {entry.use}, is missing: `{prepare}` brings it there")
            yield source(file.path, file.images, file.form)
        return
    assert entry.path is not None
    if is_meta(entry.path):
        for part in meta_entries(entry.path):
            found = source(part.path, part.images or entry.images, entry.form, part.repeat)
            if part.length not in (None, len(found.rows)) and rank() == 0:
                told = f"'length' is {part.length:,}, but {part.path} has {len(found.rows):,} rows"
                say(f"{entry.path}: {part.name}: {told}")
            yield found
        return
    if is_mix(entry.path):
        yield from (_part(source(part.path, entry.images, entry.form), part) for part in mix_entries(entry.path))
        return
    yield source(entry.path, entry.images, entry.form)


def _part(whole: Source, part: MixEntry) -> Source:
    """What a mix takes of a set."""
    count = part.rows(len(whole.rows))
    if part.part == "random":
        return replace(whole, ratio=whole.ratio * count / len(whole.rows))
    rows = Tail(whole.rows, len(whole.rows) - count) if part.part == "end" else whole.rows
    return replace(whole, rows=rows, looked_at=min(whole.looked_at, count))


def _with_template(prompter: Prompter, name: str) -> Prompter:
    """The same prompter with another template; a system prompt that the recipe gives the model stays."""
    own = prompter.template
    named = partial(template_named, tokenizer=prompter.tokenizer, image_place=own.image_place)
    told = own.default_system if own != named(own.name) else None
    return replace(prompter, template=named(name, told))
