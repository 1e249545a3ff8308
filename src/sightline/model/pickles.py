"""A file of `torch.save` -> its tensors and plain values, whoever wrote it: nothing in the file is run.

Checkpoints of other programs hold objects of classes of theirs. Those become `Foreign`s, which know nothing; the names
in the file are compared with a short list and never looked up, so no module is imported and no function called.
"""

from __future__ import annotations

import collections
import math
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from sightline.errors import ModelError
from sightline.limits import limits
from sightline.unpickler import BoundedUnpickler, Foreign, TooLarge


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> torch.Tensor:
    """What torch's own function does, but never beyond the end of the storage."""
    if not all(type(number) is int for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor of no shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    room = storage._untyped_storage.nbytes() // torch.empty((), dtype=storage.dtype).element_size()
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= room) or math.prod(size) > room:
        raise pickle.UnpicklingError("a tensor reaches beyond its data, or repeats it")
    result = torch.empty((0,), dtype=storage.dtype, device=storage._untyped_storage.device)
    return result.set_(storage._untyped_storage, offset, size, stride)


def _parameter(data: torch.Tensor, *rest: Any) -> torch.Tensor:
    return data


def _plain_tensor(make: Any, kind: object, args: tuple[Any, ...], state: object) -> Any:
    """Of a tensor with attributes, or of a class of its own: the tensor."""
    return make(*args) if make in (_tensor, _parameter, _plain_tensor) else Foreign()


KNOWN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _plain_tensor,
}
"""All that a file may call by name; torch adds the types of storages."""

UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError),
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError),
    *(ArithmeticError, MemoryError, ImportError, struct.error),
)
"""What damaged files, and files of another kind, end in."""


class _Unpickler(BoundedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        return KNOWN.get((module, name), Foreign)


class _Plain:
    """A file without a number: torch would take one for an archive of before 2017, and unpack it on the disk."""

    def __init__(self, file: Any) -> None:
        self.read, self.readline, self.readinto = file.read, file.readline, file.readinto
        self.seek, self.tell = file.seek, file.tell


def read_pickle(path: Path) -> Any:
    """The content of a .pth, .pt or .bin file, its tensors mapped from the disk; ModelError where it is none."""

    def load(file: Any, **settings: Any) -> Any:
        return _Unpickler(file, **settings).load()

    reader: Any = SimpleNamespace(Unpickler=_Unpickler, load=load, __name__="sightline")
    try:
        if not zipfile.is_zipfile(path):  # before torch 1.6
            with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
                return torch.load(cast(Any, _Plain(file)), map_location="cpu", weights_only=False, pickle_module=reader)
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ModelError(f"{path} is a TorchScript program, not a file of weights")
            for each in archive.infolist():
                if each.filename.endswith(".pkl") and each.file_size > limits().pickle_megabytes * 1e6:
                    raise TooLarge(each.file_size)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=True)
    except TooLarge as error:
        raise ModelError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ModelError(f"no file {path}") from None
    except (*UNREADABLE, OSError) as error:
        # What torch says to it fills a screen and advises to read the file without these precautions.
        raise ModelError(f"cannot read {path}: it is damaged, or no file of weights that torch has saved") from error


def tensors_in(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name: of the file itself, or of its `state_dict`, `module` or `model`."""
    for key in ("state_dict", "module", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        return {}
    return {name: it for name, it in content.items() if isinstance(name, str) and isinstance(it, torch.Tensor)}
