"""Parts in HTML -> one self-contained page: no script, nothing fetched, printable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from sightline.errors import UserError
from sightline.files import write_whole

_BEGINNING = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    # Whatever a model may answer or a row may hold: the page can run no script and fetch nothing.
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
)
"""By this a page that may be replaced is told from a stranger's."""


def write_page(path: Path | str, title: str, parts: Iterable[str]) -> Path:
    """Write the page; empty parts are left out.

    Raises UserError when it cannot be written, or would replace what is not a page of Sightline's.
    """
    path = Path(path)
    refuse_foreign(path)
    style = files("sightline.page").joinpath("page.css").read_text("utf-8")
    body = [
        f"<h1>{escape(title)}</h1>",
        *(part for part in parts if part),
        f"<footer>Written by Sightline, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>",
    ]
    page = (
        f"{_BEGINNING}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )
    try:
        write_whole(path, page, replace=True)
    except OSError as error:
        raise UserError(f"cannot write the report {path} ({error.strerror})") from error
    return path


def refuse_foreign(path: Path) -> None:
    """Raise UserError where there is something at a path that no `write_page` has written."""
    try:
        with path.open("rb") as file:
            found = file.read(1000).decode(errors="replace")
    except FileNotFoundError:
        if not path.is_symlink():
            return
        found = ""
    except OSError as error:
        raise UserError(f"cannot write the report {path} ({error.strerror})") from error
    if not found.startswith(_BEGINNING):
        raise UserError(f"{path} is there already and not a page of Sightline's; remove it or choose another name")


def section(name: str, body: str) -> str:
    """HTML: a part of the page under its name; without a body: an empty string."""
    return f"<section><h2>{escape(name)}</h2>{body}</section>" if body else ""


def facts_list(facts: Mapping[str, str], kind: str = "facts") -> str:
    """HTML: a list of names and values; without any: an empty string."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="{kind}">{items}</dl>' if items else ""
