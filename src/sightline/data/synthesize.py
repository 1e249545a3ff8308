"""`sightline data synthesize`: a folder of pictures -> a LLaVA file of questions and answers, by any vision model."""

from __future__ import annotations

import argparse
import json
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.data.asking import Outcome, ask_about_all, cost
from sightline.data.endpoint import Endpoint
from sightline.data.journal import Journal, Settings, log_of, open_journal, partial_of
from sightline.data.pairs import PROMPT, Task
from sightline.errors import UserError, shown
from sightline.runtime import api_key, say
from sightline.terminal import printable

EXTENSIONS = {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

_SHOWN = 10
"""So many pictures without a row are named at the end; all of them are in the log."""
_MOST = 1_000_000_000
"""For all numbers: sockets cannot wait for ever."""
_OURS = ("messages", "model", "n", "stream")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of pictures; folders inside it are looked through too")
    add("--out", type=Path, required=True, metavar="FILE.json", help="the LLaVA file to write")
    add("--model", required=True, metavar="NAME", help="as the endpoint calls it")
    add("--base-url", required=True, metavar="URL", help="of the endpoint, such as http://localhost:8000/v1")
    add("-n", type=_positive, default=5, metavar="N", help="questions to a picture; default: 5")
    add("--prompt", type=Path, metavar="FILE", help="what to ask, instead of our own prompt; {n} stands for the number")
    add("--language", metavar="NAME", help="of questions and answers; default: that of the prompt (ours: English)")
    add("--concurrency", type=_positive, default=8, metavar="N", help="pictures asked about at a time; default: 8")
    add("--max-side", type=_positive, default=1024, metavar="PX", help="larger pictures are scaled down; default: 1024")
    add("--head", type=_positive, metavar="N", help="only the first N pictures, to try it out")
    add("--again", action="store_true", help="ask about all pictures anew; files that are there are put aside")
    add("--asks", type=_positive, default=3, metavar="N", help="times to ask until a reply fits; default: 3")
    add("--tries", type=_positive, default=6, metavar="N", help="times to send a request that fails; default: 6")
    add("--timeout", type=_positive, default=120, metavar="S", help="seconds to wait for a reply; default: 120")
    add("--patience", type=_positive, default=10, metavar="N", help="stop after N failures in succession; default: 10")
    add("--extra", type=_extra, default={}, metavar="JSON", help='more of the request, as in {"temperature": 0.2}')


def run(args: argparse.Namespace) -> None:
    """Have a model write questions and answers about your pictures.

    Each picture of FOLDER goes to an OpenAI-compatible endpoint, scaled down and without its metadata; what comes back
    is checked and becomes a row of FILE.json, ready to train on. The key, if the endpoint wants one, is taken from the
    environment: OPENAI_API_KEY. Whatever interrupts the work, the same command goes on from there; the rows so far are
    in FILE.json.partial.jsonl. FILE.json.log.jsonl keeps what was asked, what it cost, and which pictures have no row.
    """
    if args.out.suffix != ".json":
        raise UserError(f"--out {args.out}: the result is a JSON array, so its name ends in .json")
    task = Task(args.n, _prompt(args.prompt), args.language, args.max_side, args.asks)
    endpoint = Endpoint(args.base_url, args.model, api_key(), args.extra, args.timeout, args.tries)
    host = urllib.parse.urlsplit(args.base_url)
    if endpoint.key and host.scheme == "http" and host.hostname not in ("localhost", "127.0.0.1", "::1"):
        say(f"note: OPENAI_API_KEY goes to {host.hostname} unencrypted (http)")
    names = pictures(args.folder)
    settings: Settings = {
        "folder": str(args.folder.resolve()),
        "model": args.model,
        "n": task.n,
        "language": task.language,
        "max_side": task.max_side,
        "extra": args.extra,
        "prompt": task.prompt,
    }
    with open_journal(args.out, again=args.again) as journal:
        _refuse_mixture(journal, settings, set(names))
        done = journal.done
        asked = names[: args.head]
        todo = [name for name in asked if name not in done]
        if todo:
            journal.begin(settings)
            say(f"{len(todo)} of {len(asked)} pictures to ask about; rows go to {partial_of(args.out)} as they come")
        try:
            failures = ask_about_all(endpoint, task, args.folder, todo, journal, args.concurrency, args.patience)
        except BaseException:
            say(f"rows kept so far: {len(journal.rows)}, the same command goes on from there; {cost(journal.spent)}")
            raise
        if journal.rows and (todo or partial_of(args.out).exists()):
            journal.finish()
        _report(journal, failures)


def pictures(folder: Path) -> list[str]:
    """The pictures of a folder and of those inside it, by relative name with forward slashes, in order.

    Links are followed; names that begin with a dot are not looked at.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the one that holds the pictures")

    def below(path: Path, above: frozenset[Path]) -> Iterator[Path]:
        real = path.resolve()
        if real in above:  # a link back to where we come from
            return
        for entry in path.iterdir():
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from below(entry, above | {real})
            elif entry.suffix.lower() in EXTENSIONS:
                yield entry

    try:
        names = sorted(path.relative_to(folder).as_posix() for path in below(folder, frozenset()))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be looked through ({error.strerror})") from error
    if not names:
        raise UserError(f"{folder} holds no pictures ({', '.join(sorted(EXTENSIONS))})")
    return names


def _refuse_mixture(journal: Journal, settings: Settings, names: set[str]) -> None:
    """One file, one way in which its rows were made."""
    if not journal.rows:
        return
    before = journal.settings or {}
    differs = [key for key, value in settings.items() if before.get(key) != value]
    if "folder" in differs and journal.done <= names:
        differs.remove("folder")  # it has only moved
    if differs:
        changes = [f"{key} {shown(before.get(key))} (now {shown(settings[key])})" for key in differs if key != "prompt"]
        changes += ["another prompt"] * ("prompt" in differs)
        raise UserError(
            f"the {len(journal.rows)} rows of {journal.out} were made with {', '.join(changes)}; say the same, choose "
            "another --out, or ask about all pictures anew with --again (the files are put aside)"
        )


def _report(journal: Journal, failures: Sequence[Outcome]) -> None:
    """Say what there is now, and what is missing. Raises UserError where asking again may help."""
    for outcome in failures[:_SHOWN]:
        say(printable(f"{outcome.name}: {outcome.failed}"))
    if len(failures) > _SHOWN:
        say(f"and {len(failures) - _SHOWN} more, in {log_of(journal.out)}")
    unreadable = sum(not outcome.readable for outcome in failures)
    left_out = f" (unreadable pictures left out: {unreadable})" if unreadable else ""
    if journal.rows:
        print(f"rows in {journal.out}: {len(journal.rows)}{left_out}; {cost(journal.spent)}")
    if len(failures) > unreadable:
        raise UserError(f"pictures without a row: {len(failures) - unreadable}; the same command asks about them again")
    if not journal.rows:
        raise UserError(f"no picture can be read ({unreadable} of {unreadable} left out); nothing is written")


def _prompt(path: Path | None) -> str:
    if path is None:
        return PROMPT
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--prompt {path} cannot be read ({reason})") from error
    if not text:
        raise UserError(f"--prompt {path} is empty; write what to ask, or leave the flag out")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number from 1 to {_MOST:,}")
    return int(text)


def _extra(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None
    if not isinstance(value, dict) or not value.keys().isdisjoint(_OURS):
        raise argparse.ArgumentTypeError(f"an object {{...}} without {', '.join(_OURS)} is needed")
    return value
