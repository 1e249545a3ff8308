"""`sightline data convert`: rows of any known form -> rows of another, with nothing lost."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sightline.data.formats import FORMS, read_row
from sightline.data.forms.pairs import to_paddlemix
from sightline.data.forms.places import pictures, place, written_out
from sightline.data.forms.reading import Picture, Turn
from sightline.data.forms.turns import to_llava, to_openai
from sightline.data.image_files import ImageFiles, embedded
from sightline.data.meta import is_meta
from sightline.data.mixes import is_mix
from sightline.data.sources import Row, Rows, open_rows
from sightline.data.tables import Table
from sightline.data.writers import Writer, refuse_existing, to_json, writing
from sightline.errors import DataError, UserError, short, shown

TARGETS = ("llava", "openai", "paddlemix", "jsonl", "parquet")
_WRITES: dict[str, Callable[[Sequence[Turn], Sequence[str]], Row]] = {
    "llava": to_llava,
    "jsonl": to_llava,
    "openai": to_openai,
    "paddlemix": to_paddlemix,
}
_AT_A_TIME = 64
"""Rows that are read, and whose images are fetched, together."""
_AHEAD = 4
"""So many times as many rows are read where images are fetched, so that one slow server holds up few."""
EXTRA = "extra_json"
"""The column of a Parquet file that holds, as JSON, the keys of a row that have no column."""


@dataclass(frozen=True)
class Prepared:
    """A row understood, on its way into another form."""

    turns: tuple[Turn, ...]
    extra: Row
    """The keys of the row that are no part of the conversation."""
    in_front: bool


@dataclass
class Converted:
    """What `convert` did."""

    rows: int = 0
    in_front: int = 0
    """Rows whose images had no `<image>`."""
    images: int = 0
    """Image files written."""
    left_out: int = 0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a JSON, JSONL or Parquet file, or a folder of HF datasets")
    parser.add_argument("out", metavar="OUT", help="the file to write: .json, .jsonl or .parquet")
    parser.add_argument("--to", required=True, choices=TARGETS, help="the form to write; jsonl: LLaVA's, a row a line")
    parser.add_argument("--form", choices=tuple(FORMS), help="the form of IN (default: seen from each row)")
    parser.add_argument("--images", metavar="FOLDER", help="what IN's image paths are relative to; parquet embeds them")
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--images-out", metavar="FOLDER", help="gather all images there, embedded ones become files")
    places.add_argument("--download", metavar="FOLDER", help="the same, and images that are URLs are fetched")
    parser.add_argument(
        "--private-network",
        action="store_true",
        help="let --download ask addresses of this machine and its network, too",
    )
    parser.add_argument(
        "--drop", nargs="+", default=[], metavar="KEY", help="keys of rows, turns or images to leave out"
    )
    parser.add_argument(
        "--on-bad-row", choices=("stop", "skip"), default="stop", help="skip: list such rows in OUT.bad.jsonl"
    )


def run(args: argparse.Namespace) -> None:
    """Write rows in another form.

    What the form cannot hold is an error that names the row and the reason; nothing is left out unless you say so.
    """
    out, gather = Path(args.out), args.download or args.images_out
    files = None
    if gather is not None:
        files = ImageFiles(Path(gather), args.images, args.download is not None, args.private_network)
    done = convert(
        args.source,
        out,
        args.to,
        form=args.form,
        images=args.images,
        files=files,
        drop=frozenset(args.drop),
        skip=args.on_bad_row == "skip",
    )
    print(f"{out}: {done.rows:,} {'row' if done.rows == 1 else 'rows'}")
    if done.images:
        print(f"images written to {gather}: {done.images:,}")
    if done.in_front:
        print(f"rows with images but no <image>, which now is in front of the first question: {done.in_front:,}")
    if done.left_out:
        print(f"rows left out, with their reasons in {_bad_rows(out)}: {done.left_out:,}")


def convert(
    source: str | Path,
    out: Path,
    to: str,
    *,
    form: str | None = None,
    images: str | None = None,
    files: ImageFiles | None = None,
    drop: frozenset[str] = frozenset(),
    skip: bool = False,
) -> Converted:
    """Write the rows of a file to `out`, a few at a time. Raises DataError for the first row that cannot be written."""
    from rich.console import Console
    from rich.progress import track

    kind = _container(out, to)
    if images is not None and not Path(images).is_dir():
        raise UserError(f"the folder of images {images} is missing")
    if images is not None and files is None and to != "parquet":
        raise UserError("--images is only of use with --to parquet, --images-out or --download: paths stay as they are")
    if skip:
        refuse_existing(_bad_rows(out))
    rows = _open(source)
    console = Console(stderr=True)
    numbers = iter(track(range(len(rows)), "Converting", console=console, disable=not console.is_terminal))
    done, bad = Converted(), list[tuple[str, str]]()

    def refused(origin: str, error: DataError) -> None:
        reason = str(error).removeprefix(f"{origin}: ")
        if not skip:
            raise DataError(f"{origin}: {reason}", error.kind) from None
        bad.append((origin, reason))

    def read(number: int) -> Prepared | DataError:
        try:
            return _prepare(rows, number, form, drop)
        except DataError as error:
            return error

    def write(chunk: Sequence[tuple[int, Prepared | DataError]], writer: Writer) -> None:
        for number, one in chunk:
            try:
                if isinstance(one, DataError):
                    raise one
                turns = _settled(one.turns, to, images, files)
                writer.write(_checked(_row(turns, one.extra, to), turns, to))
            except DataError as error:
                refused(rows.origin(number), error)
                continue
            done.rows += 1
            done.in_front += one.in_front
        if files is not None:
            files.forget(_pictures(chunk))

    with closing(files) if files is not None else nullcontext(), writing(out, kind) as writer:
        ahead: deque[list[tuple[int, Prepared | DataError]]] = deque()
        while chunk := [(number, read(number)) for number in islice(numbers, _AT_A_TIME)]:
            ahead.append(chunk)
            if files is not None:
                files.begin(_pictures(chunk))
            if len(ahead) == (_AHEAD if files is not None and files.fetches else 1):
                write(ahead.popleft(), writer)
        for chunk in ahead:
            write(chunk, writer)
        if not done.rows:
            raise DataError(f"{source}: no row could be written; the first: {bad[0][0]}: {bad[0][1]}")
        if bad:
            with writing(_bad_rows(out), "lines") as listed:
                for origin, reason in bad:
                    listed.write({"row": origin, "reason": reason})
    done.images, done.left_out = files.written if files is not None else 0, len(bad)
    return done


def _pictures(chunk: Sequence[tuple[int, Prepared | DataError]]) -> Iterator[Picture]:
    return (picture for _, one in chunk if isinstance(one, Prepared) for picture in pictures(one.turns))


def _open(source: str | Path) -> Rows:
    if is_meta(source) or is_mix(source):
        raise UserError(f"{source} lists sets and has no rows of its own; convert its sets one by one")
    return open_rows(source)


def _container(out: Path, to: str) -> str:
    """How a file of this name and form is laid out: array, lines or parquet."""
    fitting = {"parquet": (".parquet",), "jsonl": (".jsonl",)}.get(to, (".json", ".jsonl"))
    if out.suffix not in fitting:
        raise UserError(f"{out}: --to {to} writes a file called *{' or *'.join(fitting)}")
    return {".json": "array", ".jsonl": "lines", ".parquet": "parquet"}[out.suffix]


def _bad_rows(out: Path) -> Path:
    return out.with_name(f"{out.name}.bad.jsonl")


def _prepare(rows: Rows, number: int, form: str | None, drop: frozenset[str]) -> Prepared:
    row = rows[number]
    if isinstance(rows, Table) and EXTRA in row and EXTRA not in drop:
        row |= _unpacked(row.pop(EXTRA))
    row = {key: value for key, value in row.items() if key not in drop}
    reading = read_row(row, form)
    for key in reading.asides:
        if key not in drop:
            raise DataError(f"{shown(key)} of an image has no place in other forms; --drop {short(key)} leaves it out")
    turns, findings = place(reading)
    if drop:
        turns = tuple(replace(turn, extra={k: v for k, v in turn.extra.items() if k not in drop}) for turn in turns)
    extra = {key: value for key, value in row.items() if key not in reading.used}
    return Prepared(turns, extra, any(finding.kind == "image_in_front" for finding in findings))


def _unpacked(extra: Any) -> Row:
    try:
        found = json.loads(extra)
    except (TypeError, ValueError) as error:
        raise DataError(f"{shown(EXTRA)} is no JSON ({error}); --drop {EXTRA} leaves it out") from None
    if not isinstance(found, dict):
        raise DataError(f"{shown(EXTRA)} is no JSON object; --drop {EXTRA} leaves it out")
    return found


def _settled(turns: tuple[Turn, ...], to: str, images: str | None, files: ImageFiles | None) -> tuple[Turn, ...]:
    """The turns with their pictures as the new file will hold them."""

    def settle(picture: Picture) -> Picture:
        if files is not None:
            picture = files.keep(picture)
        elif to != "parquet" and picture.data is not None:
            raise DataError("the row holds the bytes of an image, JSON cannot; --images-out FOLDER makes files of them")
        if to == "parquet" and files is None:
            picture = embedded(picture, images)
        return picture

    return tuple(
        replace(turn, content=tuple(settle(part) if isinstance(part, Picture) else part for part in turn.content))
        for turn in turns
    )


def _row(turns: Sequence[Turn], extra: Row, to: str) -> Row:
    found = pictures(turns)
    if to == "parquet":
        for number, turn in enumerate(turns, 1):
            if turn.extra:
                key = next(iter(turn.extra))
                raise DataError(
                    f"turn {number}: {shown(key)} has no place in a Parquet file; --drop {short(key)} leaves it out"
                )
        rest = dict(extra)
        identity = rest.pop("id") if isinstance(rest.get("id"), str) else None
        return {
            "id": identity,
            "messages": [{"role": turn.role, "content": written_out(turn)} for turn in turns],
            "images": [{"bytes": picture.data, "path": picture.source} for picture in found],
            EXTRA: to_json(rest).decode() if rest else None,
        }
    written = _WRITES[to](turns, [str(picture.source) for picture in found])
    if taken := written.keys() & extra.keys():
        raise DataError(f"the row's own {shown(min(taken))} is in the way; --drop {short(min(taken))} leaves it out")
    before: dict[str, Any] = {"id": extra["id"]} if "id" in extra else {}
    return before | written | extra


def _checked(row: Row, turns: Sequence[Turn], to: str) -> Row:
    """The row, if it reads back as what was to be written."""
    plain = {key: value for key, value in row.items() if value is not None and key != EXTRA} if to == "parquet" else row
    if place(read_row(plain))[0] != tuple(turns):
        raise DataError(f"the row would read differently as {to}")
    return row
