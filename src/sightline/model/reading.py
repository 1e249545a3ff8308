"""What transformers says about a folder that is no model, or not a whole one -> one line for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from sightline.errors import ModelError
from sightline.model.weights import LEARNED, checkpoints

REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained` with which it tells what does not fit; `check_keys` refuses it."""


def check_keys(path: str | Path, report: dict[str, Any], *kinds: str) -> None:
    """Raise ModelError where transformers would go on with random weights, or without some of the file's."""
    found = {kind: report[f"{kind}_keys"] for kind in kinds if report.get(f"{kind}_keys")}
    if found:
        shown = "; ".join(f"{len(keys)} {kind}, such as {_shown(min(keys))}" for kind, keys in found.items())
        raise ModelError(f"the weights in {path} do not fit its config.json ({shown})")


def _shown(key: str | tuple[str, Sequence[int], Sequence[int]]) -> str:
    return key if isinstance(key, str) else f"{key[0]}, {list(key[1])} in the file and {list(key[2])} in the model"


def model_folder(path: str | Path) -> str | Path:
    """The folder of the finished model, where the path is a run; otherwise the path itself."""
    finished = Path(path, "hf")
    is_run = not Path(path, "config.json").is_file() and (finished / "config.json").is_file()
    return finished if is_run else path


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what transformers says about a folder that is no model into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            raise ModelError(f"{path} is not a model folder: it has no config.json{_of_a_run(Path(path))}") from error
        if not Path(path).exists() and (str(path).startswith((".", "/", "~")) or str(path).count("/") != 1):
            raise ModelError(f"no model folder {path}") from error
        raise ModelError(f"cannot load {path}: {_one_line(error)}") from error
    except SafetensorError as error:
        raise ModelError(f"the weights in {path} are damaged ({error}); copy or convert them again") from error


def _of_a_run(folder: Path) -> str:
    if (folder / "hf").is_dir():
        return f"; the model of this run is in {folder / 'hf'}"
    if (folder / LEARNED).is_dir() or folder.name == LEARNED:
        return "; it holds only what a run has learned: make a whole model of it with sightline convert merge"
    if checkpoints(folder):
        return "; this run is not finished: make a model of its newest checkpoint with sightline convert"
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bar and table of keys: we look at the keys ourselves."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__, 500, placeholder=" ...")
