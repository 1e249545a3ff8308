"""What transformers says about a folder that is no model, or not a whole one -> one line for people."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from sightline.errors import ModelError, UserError, is_panic
from sightline.model.hub import check_at_hand
from sightline.model.weights import FINISHED, LEARNED, checkpoints
from sightline.pointers import refuse_pointer

WHOLE = ("llava", "llava_next")
"""`model_type` of what is put together already."""

REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained` with which it tells what does not fit; `check_keys` refuses it."""


def check_keys(path: str | Path, report: dict[str, Any], *kinds: str) -> None:
    """Raise ModelError where transformers would go on with random weights, or without some of the file's."""
    found = {kind: report[f"{kind}_keys"] for kind in kinds if report.get(f"{kind}_keys")}
    if found:
        shown = "; ".join(f"{len(keys)} {kind}, such as {_shown(min(keys))}" for kind, keys in found.items())
        raise ModelError(f"the weights in {path} do not fit its config.json ({shown})")


def check_layers(path: str | Path, report: dict[str, Any], model: nn.Module) -> None:
    """Raise ModelError where the files hold more layers than config.json counts: they would be left out."""
    known = {re.sub(r"\.\d+\.", ".0.", name) for name in model.state_dict()}
    cut = [key for key in report["unexpected_keys"] if re.sub(r"\.\d+\.", ".0.", key) in known]
    if cut:
        raise ModelError(
            f"the weights in {path} do not fit its config.json, which counts fewer layers ({len(cut)} tensors are too "
            f"many, such as {min(cut)})"
        )


def _shown(key: str | tuple[str, Sequence[int], Sequence[int]]) -> str:
    return key if isinstance(key, str) else f"{key[0]}, {list(key[1])} in the file and {list(key[2])} in the model"


def model_folder(path: str | Path) -> str | Path:
    """The folder of the finished model, where the path is a run; otherwise the path itself."""
    finished = Path(path, FINISHED)
    is_run = not Path(path, "config.json").is_file() and (finished / "config.json").is_file()
    return finished if is_run else path


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what transformers says about a folder that is no model into one line.

    A folder that is missing is not looked for on the hub.
    """
    _check_there(str(path))
    _check_index(Path(path))
    _check_pointers(Path(path))
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise ModelError(f"the weights in {path} are damaged ({error}); copy or convert them again") from error
    except pickle.UnpicklingError as error:  # torch would advise to read the file without its precautions
        raise ModelError(
            f"a .bin file in {path} is damaged, or holds more than weights, and nothing in it is run; take the model's "
            f".safetensors"
        ) from error
    except BaseException as error:  # transformers and tokenizers trip over odd files in every way there is
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            raise ModelError(f"{path} is not a model folder: it has no config.json{_of_a_run(Path(path))}") from error
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path} needs code of its own (auto_map in its files), and no code of a model is run; take one that "
                f"transformers has a class for"
            ) from error
        raise ModelError(f"cannot load {path}: {_one_line(error)}") from error


def _check_there(path: str) -> None:
    """Raise ModelError for what is no folder, and no name on the hub: that has one owner, who is no folder here."""
    if Path(path).is_file():
        raise ModelError(f"{path} is a file, not a model folder")
    if path and Path(path).exists():
        return
    owner, _, name = path.partition("/")
    if path.startswith((".", "/", "~")) or not name or "/" in name:
        raise ModelError(f"no model folder {path or repr(path)}")
    if Path(owner).is_dir() and not isinstance(try_to_load_from_cache(path, "config.json"), str):
        raise ModelError(f"no model folder {path}: there is none of this name in {owner}")
    check_at_hand(path)


def _check_pointers(folder: Path) -> None:
    """Raise ModelError where git-lfs has left a pointer in the place of weights, or of another file of a model."""
    with suppress(OSError):
        for file in folder.glob("*.*"):
            if file.suffix in (".safetensors", ".bin", ".json", ".model") and file.stat().st_size < 1024:
                refuse_pointer(file)


def _check_index(folder: Path) -> None:
    """Raise ModelError where an index of weights names anything but files of its folder, which transformers takes."""
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        if not index.is_file():
            continue
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            inside = all(name and Path(name).name == name for name in names)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            inside = False
        if not inside:
            raise ModelError(f"{index} is damaged (its weight_map names no files of this folder); copy it again")


def _of_a_run(folder: Path) -> str:
    if (folder / FINISHED).is_dir():
        return f"; the model of this run is in {folder / FINISHED}"
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


@contextmanager
def hushed() -> Iterator[None]:
    """Without what libraries write to the terminal past Python."""
    try:
        sys.stderr.flush()
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except (OSError, AttributeError):  # closed from the start: `2>&-`
        yield
        return
    os.dup2(nothing, 2)
    os.close(nothing)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _one_line(error: BaseException) -> str:
    said = str(error)
    if isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)):
        said = f"{type(error).__name__}: {said}"  # by itself it may be no more than the name of a key
    return shorten(said or type(error).__name__, 500, placeholder=" ...")
