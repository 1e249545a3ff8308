"""One pass over all rows of a recipe: tokens, targets, images and verdict of each, before a weight is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from sightline.data.formats import to_conversation
from sightline.data.sources import Rows, open_rows
from sightline.errors import DataError
from sightline.prompt.images import check_image
from sightline.prompt.prompter import Prompter
from sightline.recipe import DataRecipe
from sightline.types import Conversation, Encoded


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    origin: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The usable rows of all files of a recipe, in order, with what planning needs to know of each."""

    sources: tuple[tuple[Rows, str | None], ...]
    """The files, with their folders of images."""
    where: np.ndarray
    """int64 [N, 2]: file and row of each sample."""
    tokens: np.ndarray
    """int64 [N]: length of each sample, image tokens included, after cutting at max_length."""
    targets: np.ndarray
    """int64 [N]"""
    images: np.ndarray
    """int64 [N]"""
    bad_rows: tuple[BadRow, ...]
    prompter: Prompter
    max_length: int

    def __len__(self) -> int:
        return len(self.where)

    def conversation(self, sample: int) -> Conversation:
        """Read a sample from its file again."""
        source, number = self.where[sample].tolist()
        rows, folder = self.sources[source]
        return to_conversation(rows[number], rows.origin(number), folder)

    def origin(self, sample: int) -> str:
        """How messages call the row of a sample."""
        source, number = self.where[sample].tolist()
        return self.sources[source][0].origin(number)

    def encode(self, sample: int) -> Encoded:
        return self.prompter.encode(self.conversation(sample).messages, max_length=self.max_length)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a sample, its order or its tokens may have changed."""
        digest = hashlib.sha256()
        for rows, folder in self.sources:
            digest.update(f"{rows.path} {folder}".encode())
            digest.update(rows.content)
        for array in (self.where, self.tokens, self.targets, self.images):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """Counts for people, reports and the run folder."""
        return {
            "rows": len(self),
            "bad_rows": len(self.bad_rows),
            "images": int(self.images.sum()),
            "text_only_rows": int((self.images == 0).sum()),
            "tokens": int(self.tokens.sum()),
            "targets": int(self.targets.sum()),
            "longest": int(self.tokens.max(initial=0)),
            "fingerprint": self.fingerprint,
        }

    def length_histogram(self, bins: int = 24) -> list[tuple[int, int]]:
        """How many samples have up to so many tokens: (upper end, count)."""
        width = -(-int(self.tokens.max()) // bins)
        counts = np.bincount((self.tokens - 1) // width)
        return [((number + 1) * width, int(count)) for number, count in enumerate(counts)]


def open_dataset(entries: tuple[DataRecipe, ...], prompter: Prompter, max_length: int, console: Console) -> Dataset:
    """Look at every row and every image of all files.

    Rows that cannot be used stop with a DataError, or are set aside where the entry says `on_bad_row: skip`.
    """
    sources, where, counts, bad, fatal = [], [], [], [], []
    for entry in entries:
        rows = open_rows(entry.path)
        folder = str(entry.images) if entry.images is not None else None
        if folder is not None and not Path(folder).is_dir():
            raise DataError(f"the folder of images {folder} of {entry.path} is missing")
        sources.append((rows, folder))
        numbers = range(len(rows) if entry.head is None else min(entry.head, len(rows)))
        for number in track(numbers, f"Checking {rows.path.name}", console=console, disable=not console.is_terminal):
            try:
                _, encoded = look_at(rows, number, folder, prompter, max_length)
                counts.append((len(encoded.ids), encoded.num_targets, len(encoded.images)))
                where.append((len(sources) - 1, number))
            except DataError as error:
                reason = str(error).removeprefix(f"{rows.origin(number)}: ")
                bad.append(BadRow(rows.origin(number), reason))
                if entry.on_bad_row == "stop":
                    fatal.append(bad[-1])
    if fatal:
        first = fatal[0]
        more = f" (and {len(fatal) - 1} more bad rows)" if len(fatal) > 1 else ""
        raise DataError(f"{first.origin}: {first.reason}{more}; `on_bad_row: skip` leaves such rows out")
    if not where:
        raise DataError(f"no usable rows in {', '.join(str(entry.path) for entry in entries)}")
    table = np.array(counts, dtype=np.int64)
    return Dataset(
        sources=tuple(sources),
        where=np.array(where, dtype=np.int64),
        tokens=table[:, 0],
        targets=table[:, 1],
        images=table[:, 2],
        bad_rows=tuple(bad),
        prompter=prompter,
        max_length=max_length,
    )


def write_bad_rows(dataset: Dataset, path: Path) -> None:
    """List the rows that were left out, one JSON object a line."""
    lines = [json.dumps({"row": row.origin, "reason": row.reason}, ensure_ascii=False) for row in dataset.bad_rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def look_at(
    rows: Rows, number: int, folder: str | None, prompter: Prompter, max_length: int
) -> tuple[Conversation, Encoded]:
    """Understand a row, check its images and encode it; DataErrors begin with the row's origin."""
    origin = rows.origin(number)
    try:
        conversation = to_conversation(rows[number], origin, folder)
        for image in conversation.images:
            check_image(image)
        encoded = prompter.encode(conversation.messages, max_length=max_length)
        if not encoded.num_targets:
            raise DataError(
                f"no target is left within max_length {max_length}; raise batch.max_length or shorten the row"
            )
    except DataError as error:
        raise DataError(f"{origin}: {str(error).removeprefix(f'{origin}: ')}") from None
    return conversation, encoded
