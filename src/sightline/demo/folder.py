"""`--work-dir` -> a folder that is the demo's alone while it runs, cleared of what earlier demos left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sightline.errors import UserError
from sightline.files import hold

MARK, MADE = "demo.json", '{"made by": "sightline demo"}'
"""The file that says that a folder is the demo's own, and what stands in it: only then is anything in it replaced."""

CLEARED = ("world", "pretrain", "finetune", "mmbench", "mmbench_before")


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold the folder and make room in it; what an earlier demo learned of language and vision is kept.

    Raises UserError where it cannot be used, holds something else, or another demo runs in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = {path.name for path in folder.iterdir()} - {MARK}
        if others and not (folder / MARK).exists():
            raise _foreign(folder)
        mark = hold(folder / MARK)
    except BlockingIOError:
        raise UserError(f"another demo runs in {folder}; wait for it, or choose another --work-dir") from None
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder} ({error.strerror}); choose another --work-dir") from error
    with mark:
        mark.seek(0)
        found = mark.read(len(MADE) + 1).decode(errors="replace")
        # Empty: an earlier demo had no room to write even this.
        if found != MADE and (found or others):
            raise _foreign(folder)
        if not found:
            mark.write(MADE.encode())
            mark.flush()
        for old in (folder / name for name in CLEARED):
            try:
                if os.path.lexists(old):
                    shutil.rmtree(old)
            except OSError as error:
                raise UserError(f"cannot remove {old} of an earlier demo ({error.strerror or error})") from error
        yield


def _foreign(folder: Path) -> UserError:
    return UserError(f"{folder} is not empty and not the demo's; choose another --work-dir")
