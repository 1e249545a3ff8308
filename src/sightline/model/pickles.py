"""A file of `torch.save` -> its tensors and plain values, whoever wrote it: nothing in the file is run.

Checkpoints of other programs hold objects of classes of theirs. Those become `Foreign`s, which know nothing; the names
in the file are compared with a short list and never looked up, so no module is imported and no function called.
"""

from __future__ import annotations

import collections
import pickle
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sightline.errors import ModelError


class Foreign:
    """Stands for an object of another program's class: takes everything, keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Foreign:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> torch.Tensor:
    """What torch's own function does, but never beyond the end of the storage."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    room = storage._untyped_storage.nbytes() // torch.empty((), dtype=storage.dtype).element_size()
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= room):
        raise pickle.UnpicklingError("a tensor reaches beyond its data")
    result = torch.empty((0,), dtype=storage.dtype, device=storage._untyped_storage.device)
    return result.set_(storage._untyped_storage, offset, size, stride)


def _parameter(data: torch.Tensor, *rest: Any) -> torch.Tensor:
    return data


def _plain_tensor(make: Any, kind: object, args: tuple[Any, ...], state: object) -> Any:
    """Of a tensor with attributes, or of a class of its own: the tensor. `make` is from this table, or a Foreign."""
    return make(*args)


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
)
"""What damaged files, and files of another kind, end in."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        return KNOWN.get((module, name), Foreign)


def read_pickle(path: Path) -> Any:
    """The content of a .pth, .pt or .bin file, its tensors mapped from the disk; ModelError where it is none."""
    try:
        if not zipfile.is_zipfile(path):  # before torch 1.6
            with warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ModelError(f"{path} is a TorchScript program, not a file of weights")
        reader: Any = SimpleNamespace(Unpickler=_Unpickler, __name__="sightline")
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=True)
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
