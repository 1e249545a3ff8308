"""What a person can mend, and where.

UserError               ends in one line and exit code 2; everything else is a bug (traceback, exit code 1)
  UserErrors            several, a line each
    RecipeError         a recipe or an override: file, dotted key, nearest valid key
  DataError             a data file, a row, an image: file and row number
  ModelError            a model folder: what is missing or does not fit
  CheckpointError       a checkpoint of a run: what differs, what is cut
  MissingExtra          an optional package: the command that installs it
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 120
"""Characters of a value in a message; its beginning tells which one it is."""


def shown(value: object) -> str:
    """A value of a stranger's as messages hold it: on one line, and not longer than is of use."""
    if isinstance(value, str | bytes):
        value = value[: LONGEST + 1]  # the rest, which may be megabytes, is not even looked at
    try:
        text = " ".join(repr(value).split())
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def short(text: str) -> str:
    """A stranger's text that a message repeats as it is, such as a name to type: not longer than is of use."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def listed(names: Iterable[object], most: int = 12) -> str:
    """Several of a stranger's names in a message: the first of them, and how many more there are."""
    every = list(names)
    first = ", ".join(shown(name)[:40] for name in every[:most])
    return first if len(every) <= most else f"{first} and {len(every) - most} more"


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust has given up: no Exception of Python, though it ends no more than the call."""
    return type(error).__name__ == "PanicException"


class UserError(Exception):
    """Something is wrong that the user can put right; the message says what, where and how."""


class UserErrors(UserError):
    """Several errors, a line each; a line may hold anything but the end of one."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), tuple(str(self).split("\n"))


class RecipeError(UserErrors):
    """One or more errors of a recipe, a line each."""


class DataError(UserError):
    """A data file, a row of it or an image cannot be used as it is; `kind` is a key of `data/verdict.py`'s KINDS."""

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.kind)


class ModelError(UserError):
    """A folder is not a model that Sightline knows, or its parts do not fit together."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


class MissingExtra(UserError):
    """An optional dependency is needed for what was asked."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}: pip install 'sightline-vlm[{extra}]'; in a clone: "
            f"pip install '.[{extra}]'"
        )
