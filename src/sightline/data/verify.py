"""From a known set and a folder to what of it is there: parts, pictures, rows, pictures that the rows name."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from sightline.data.fetch import hash_file
from sightline.data.layouts import KnownFile, Part, find_set, known_sets
from sightline.data.sources import open_rows
from sightline.data.unpack import PICTURES
from sightline.errors import DataError, UserError
from sightline.runtime import console
from sightline.terminal import printable


@dataclass(frozen=True, slots=True)
class Found:
    """What is at the place of a part."""

    state: str
    """there, incomplete or missing."""
    what: str
    """Counted, in words; or what is wrong."""

    @property
    def there(self) -> bool:
        return self.state == "there"


@dataclass(frozen=True, slots=True)
class Named:
    """The rows of a file against the pictures on the disk."""

    rows: int
    pictures: int
    """Different ones that the rows name."""
    missing: tuple[str, ...]
    """Those that are not there, sorted."""


def look(part: Part, root: Path) -> Found:
    """What is at the place of a part, judged by names and numbers alone (nothing is opened)."""
    place = root / part.place
    if part.link is not None:
        return _look_link(part, root)
    if part.take:
        lacking = [name for name in part.take if not (place / name).is_file()]
        if not lacking:
            return Found("there", f"{len(part.take)} files")
        state = "missing" if len(lacking) == len(part.take) else "incomplete"
        return Found(state, f"without {', '.join(lacking)}" if state == "incomplete" else "")
    if not part.is_folder:
        return Found("there", amount(place.stat().st_size)) if place.is_file() else Found("missing", "")
    count = sum(1 for _ in _pictures(place))
    if part.pictures is not None and 0 < count < part.pictures:
        return Found("incomplete", f"{count:,} of {part.pictures:,} pictures")
    return Found("there", many(count, "picture")) if count else Found("missing", "")


def _look_link(part: Part, root: Path) -> Found:
    place = root / part.place
    if place.is_symlink():
        where = os.readlink(place)
        if place.exists() or (place.parent / where).resolve() == (root / str(part.link)).resolve():
            return Found("there", f"-> {where}")
        return Found("missing", f"a link to {where}, which is not there; delete it")
    if place.is_dir():
        return Found("there", "a folder of its own")
    return Found("missing", "")


def amount(size: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def many(number: int, what: str) -> str:
    """A number and what is counted: 1 file, 1,342 files."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def match_pictures(path: str, folder: str) -> Named:
    """Compare the pictures that the rows of a file name with those in a folder: each directory is read once.

    Raises DataError when the file cannot be read.
    """
    wanted: dict[str, set[str]] = {}
    rows = open_rows(path)
    quiet = not console.is_terminal
    for number in track(range(len(rows)), Path(path).name, console=console, transient=True, disable=quiet):
        image = rows[number].get("image")
        for name in image if isinstance(image, list) else [image]:
            if isinstance(name, str) and name and "://" not in name[:9]:
                directory, _, file = name.rpartition("/")
                wanted.setdefault(directory, set()).add(file)
    missing = []
    for directory, files in wanted.items():
        lacking = files - _names_in(Path(folder, directory))
        missing += [f"{directory}/{file}" if directory else file for file in lacking]
    return Named(len(rows), sum(map(len, wanted.values())), tuple(sorted(missing)))


def _names_in(directory: Path) -> set[str]:
    try:
        with os.scandir(directory) as entries:
            return {entry.name for entry in entries}
    except (OSError, ValueError):  # a name that no disk can know
        return set()


def _pictures(folder: Path) -> Iterator[str]:
    """The pictures below a folder, links followed, without asking the disk about each."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(PICTURES):
                    yield entry.path
                elif entry.is_dir():
                    yield from _pictures(Path(entry.path))
    except OSError:
        return


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a known set; without it, their names are listed")
    parser.add_argument("--root", default="data", help="the folder of all data (data)")


def run(args: argparse.Namespace) -> None:
    """Say what of a known set of data is there and what is missing, with counts; nothing is changed.

    Parts are judged by their names and numbers of pictures, small files also by their checksum. Where the rows are
    there, each picture that they name is looked for. The exit code is 2 when something is missing.
    """
    if args.name is None:
        list_sets()
        return
    known, root = find_set(args.name), Path(args.root)
    print(f"{known.name}: {known.about}, in {root}")
    lacking = [part.name for part in known.parts if not _print_part(part, root)]
    problems = [f"not complete: {', '.join(lacking)}"] if lacking else []
    for file in known.files:
        problem, places = _print_file(file, root)
        problems += [problem] if problem else []
        own = [part for part in known.parts if not part.link]
        lacking += [part.name for part in own if any(_holds(root / part.place, place) for place in places)]
    if problems:
        only = "" if len(lacking) == len(known.parts) else f" --only {' '.join(dict.fromkeys(lacking))}"
        remedy = f"`sightline data prepare {known.name} --root {root}{only if lacking else ''}`"
        raise DataError(f"{known.name}: {'; '.join(problems)}; {remedy} fetches what it can and says the rest")
    print("All of it is there.")


def list_sets() -> None:
    """Print the names of all known sets."""
    for known in known_sets().values():
        print(f"{known.name:<22}{known.about}")


def _print_part(part: Part, root: Path) -> bool:
    found = look(part, root)
    if found.there and part.checksum and not part.is_folder:
        algorithm, _, expected = part.checksum.partition(":")
        if hash_file(root / part.place, algorithm) != expected:
            found = Found("incomplete", f"{found.what}, but its {algorithm} is not {expected}")
    print(f"  {found.state:<11}{part.name:<30}{part.place}  {found.what}".rstrip())
    return found.there


def _print_file(file: KnownFile, root: Path) -> tuple[str | None, list[Path]]:
    """Print how the rows of a file and its pictures agree; returns what is wrong, and where pictures are missing."""
    path = root / file.path
    if not path.is_file():
        print(f"  {path.name}: not there")
        return f"no {path.name}", []
    try:
        named = match_pictures(str(path), str(root / file.images))
    except UserError as error:
        print(printable(f"  {path.name}: {error}"))
        return f"{path.name} cannot be read", []
    of = f" of {file.rows:,}" if file.rows is not None and file.rows != named.rows else ""
    gone = f"{len(named.missing):,} of them not there" if named.missing else "all there"
    print(f"  {path.name}: {named.rows:,}{of} rows name {many(named.pictures, 'picture')}, {gone}")
    first: dict[str, str] = {}
    for name in named.missing:
        first.setdefault(name.rpartition("/")[0], name)
    counts = Counter(name.rpartition("/")[0] for name in named.missing)
    for place, count in counts.most_common(10):
        print(printable(f"    {count:,} in {file.images}/{place}, such as {first[place]}"))
    problem = f"{many(len(named.missing), 'picture')} of {path.name} missing" if named.missing else None
    if problem is None and named.rows < (file.rows or 0):
        problem = f"{path.name} has {named.rows:,} rows, not {file.rows:,}"
    return problem, [root / file.images / place for place in counts]


def _holds(folder: Path, place: Path) -> bool:
    """Whether a place lies in a folder, links followed."""
    return place.resolve().is_relative_to(folder.resolve())
