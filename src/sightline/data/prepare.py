"""From the name of a known set to its files in their places: fetched, unpacked, linked; the rest is named."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sightline.data.fetch import Report, fetch, remote_size, size_of_part
from sightline.data.layouts import ARCHIVES, KnownSet, Part, find_set
from sightline.data.unpack import names_to_jpg, unpack
from sightline.data.verify import Found, amount, list_sets, look, many
from sightline.errors import DataError, UserError, UserErrors
from sightline.files import hold
from sightline.runtime import console, hub_address, say

HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done about one part."""

    part: Part
    found: Found
    action: str
    """nothing, fetch, unpack, link, by hand or make."""
    size: int | None
    """Bytes still to be fetched, as the server says, else as documented; None: unknown."""
    exact: bool = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a known set; without it, their names are listed")
    parser.add_argument("--root", default="data", help="the folder of all data (data)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and how much is to be fetched")
    parser.add_argument("--only", nargs="+", metavar="PART", help="only these parts of the set")
    parser.add_argument("--remove-archives", action="store_true", help="delete fetched archives after unpacking them")


def run(args: argparse.Namespace) -> None:
    """Fetch a known set of data and put each part in its place.

    What is there already is not fetched again; what broke off goes on where it was. Archives lie in ROOT/downloads;
    one that you put there yourself, called as its part (coco.zip, sam.tar.gz), is taken instead of fetching.
    Parts that only a person can fetch are named at the end. HF_ENDPOINT names a mirror of the Hugging Face hub.
    """
    if args.name is None:
        list_sets()
        return
    known, root = find_set(args.name), Path(args.root)
    steps = plan(_chosen(known, args.only), root, asked=args.only is not None)
    show(known, root, steps)
    if args.dry_run:
        _say_rest(steps, root)
        return
    _check_room(root, steps)
    failures = []
    for step in steps:
        try:
            _do(step, root, args.remove_archives)
        except (DataError, OSError) as error:  # one dead link must not hold up the other parts
            say(f"{step.part.name}: could not be brought to its place; see the end")
            failures.append(f"{step.part.name}: {error}")
    _say_rest(steps, root)
    if failures:
        raise UserErrors(*(" ".join(failure.split("\n")) for failure in failures))


def plan(parts: tuple[Part, ...], root: Path, asked: bool = False) -> list[Step]:
    """What is to be done about each part. Asks the servers for the sizes, all at once.

    `asked`: the user names these parts, so a folder of which no one knows whether it is complete may be filled up.
    """
    found = [look(part, root) for part in parts]
    actions = [_action(part, state, root, asked) for part, state in zip(parts, found, strict=True)]
    far = [part for part, action in zip(parts, actions, strict=True) if action == "fetch"]
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = dict(zip(far, pool.map(lambda part: remote_size(_url(part)), far), strict=True))
    steps = []
    for part, state, action in zip(parts, found, actions, strict=True):
        size = sizes.get(part) or part.size
        if size is not None:
            size = max(size - size_of_part(_target(part, root)), 0)
        steps.append(Step(part, state, action, size, exact=sizes.get(part) is not None))
    return steps


def show(known: KnownSet, root: Path, steps: list[Step]) -> None:
    """Print the plan."""
    print(f"{known.name}: {known.about}, in {root}")
    for step in steps:
        size = "there" if step.found.there else _size_text(step)
        print(f"  {step.action:<9}{size:<12}{step.part.name:<30}{step.part.place}  {step.found.what}".rstrip())
    fetched = [step for step in steps if step.action == "fetch"]
    if not fetched:
        return
    total, unknown = sum(step.size or 0 for step in fetched), sum(step.size is None for step in fetched)
    about = "" if all(step.exact for step in fetched) else "about "
    amounts = [f"{about}{amount(total)}"] if total else []
    amounts += [f"{many(unknown, 'file')} of unknown size"] if unknown else []
    print(f"To fetch: {' and '.join(amounts)}. Archives need their room a second time when they are unpacked.")
    for licence in dict.fromkeys(step.part.licence for step in fetched):
        names = ", ".join(step.part.name for step in fetched if step.part.licence == licence)
        print(f"  licence of {names}: {licence}")


def _size_text(step: Step) -> str:
    if step.action != "fetch":
        return ""
    if step.size is None:
        return "unknown"
    return amount(step.size) if step.exact else f"~{amount(step.size)}"


def _chosen(known: KnownSet, only: list[str] | None) -> tuple[Part, ...]:
    names = [part.name for part in known.parts]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise UserError(f"{known.name} has no part {', '.join(unknown)}; its parts: {', '.join(names)}")
    return tuple(part for part in known.parts if only is None or part.name in only)


def _action(part: Part, found: Found, root: Path, asked: bool) -> str:
    packed = part.is_folder and _archive(part, root) is not None
    if found.there:
        doubtful = asked and part.is_folder and part.pictures is None and not part.take
        if doubtful and (packed or part.by_hand):
            return "unpack" if packed else "by hand"
        return "nothing"
    if part.link:
        return "link"
    if packed:
        return "unpack"
    if part.url:
        return "fetch"
    return "by hand" if part.by_hand else "make"


def _url(part: Part) -> str:
    url = str(part.url)
    return hub_address() + url.removeprefix(HUB) if url.startswith(HUB + "/") else url


def _target(part: Part, root: Path) -> Path:
    """What is fetched of a part: its archive, or the file itself."""
    return root / "downloads" / (part.name + part.ending) if part.is_folder else root / part.place


def _archive(part: Part, root: Path) -> Path | None:
    """The complete archive of a part, fetched or put there by a person."""
    names = [root / "downloads" / (part.name + ending) for ending in ARCHIVES]
    return next((path for path in names if path.is_file()), None)


def _check_room(root: Path, steps: list[Step]) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--root {root} cannot be made a folder: {error.strerror}") from None
    need = sum(step.size or 0 for step in steps if step.action == "fetch")
    free = shutil.disk_usage(root).free
    if need > free:
        raise DataError(f"{amount(need)} are to be fetched, {amount(free)} are free in {root}; use --only PART")


def _do(step: Step, root: Path, remove_archives: bool) -> None:
    part, place = step.part, root / step.part.place
    place.parent.mkdir(parents=True, exist_ok=True)
    if step.action == "link":
        _link(place, root / str(part.link))
    elif step.action in ("fetch", "unpack"):
        with _alone(part, root):
            _fill(part, root, place, remove_archives)
    if part.jpg and place.is_dir():
        renamed, left = names_to_jpg(place)
        if renamed or left:
            say(f"{part.name}: {renamed:,} pictures renamed to .jpg, {left:,} left, a .jpg of their name being there")


def _fill(part: Part, root: Path, place: Path, remove_archives: bool) -> None:
    """Fetch what is not there and unpack it."""
    archive = _archive(part, root) if part.is_folder else None
    fetched = archive is None
    with _progress(part.name, "fetched") as report:
        if archive is None:
            archive = _target(part, root)
            fetch(_url(part), archive, checksum=part.checksum, report=report)
    if not part.is_folder:
        return
    with _progress(part.name, "unpacked") as report:
        done = unpack(archive, place, take=part.take, report=report)
    said = f"{part.name}: {done.placed:,} files placed"
    if done.same or done.different:
        said += f", {done.same:,} were there, {done.different:,} are there with another size and were left"
    say(said)
    if remove_archives and fetched:
        archive.unlink()
    elif remove_archives:
        say(f"{part.name}: {archive} was there before, and stays")


def _link(place: Path, target: Path) -> None:
    """A relative link, so that the whole tree may move."""
    try:
        os.symlink(os.path.relpath(target, place.parent), place, target_is_directory=True)
    except OSError as error:
        raise DataError(f"{place} cannot be made a link to {target}: {error.strerror}") from None
    say(f"{place} -> {target}")


def _say_rest(steps: list[Step], root: Path) -> None:
    for step in steps:
        part = step.part
        if step.action == "by hand":
            print(f"By hand: {part.name} ({part.about}). {part.by_hand}")
            print(
                f"  Save an archive as {root / 'downloads' / part.name}.zip (.tar, .tar.gz) and run this again, "
                f"or unpack it into {root / part.place} ."
            )
            print(f"  Licence: {part.licence}")
        elif step.action == "make":
            print(f"Make {part.name} ({part.about}) with: {str(part.made_by).format(root=root)}")


@contextmanager
def _progress(name: str, done: str) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("rest"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{name} {done}", total=None)
        yield lambda there, total: bar.update(task, completed=there, total=total)


@contextmanager
def _alone(part: Part, root: Path) -> Iterator[None]:
    """Hold a lock, so that two runs do not write one file; the system drops it when a run is killed."""
    path = root / "downloads" / f".{part.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = hold(path)
    except BlockingIOError:
        raise DataError(f"another run is fetching it into {root}; wait for that one") from None
    with held:
        yield
