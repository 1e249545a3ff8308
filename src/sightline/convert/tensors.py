"""A folder's weight files -> its tensors, each read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sightline.errors import ModelError
from sightline.model.pickles import read_pickle, tensors_in
from sightline.pointers import refuse_pointer

TYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of number formats, in the order in which it writes tensors: the wide ones first."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is known by its shape and format, and read when it is needed."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def then(self, change: Callable[[torch.Tensor], torch.Tensor], shape: Iterable[int] | None = None) -> Stored:
        """The same tensor, changed when it is read; `shape` is what it has then."""
        return replace(self, shape=self.shape if shape is None else tuple(shape), read=lambda: change(self.read()))

    def to(self, dtype: torch.dtype) -> Stored:
        """In another number format, where it is one of floating point."""
        if not self.dtype.is_floating_point or dtype == self.dtype:
            return self
        return replace(self, dtype=dtype, read=lambda: self.read().to(dtype))


def stored(tensor: torch.Tensor) -> Stored:
    """A tensor that is in memory already."""
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def in_folder(folder: Path, *, of: str = "") -> dict[str, Stored]:
    """The tensors of a folder's `model*.safetensors` or `pytorch_model*.bin`, by their names in the files.

    Of several forms the one that transformers would take; `of` is what they belong to, for messages. Raises ModelError
    where a file is missing, cut, lacks a tensor that the index promises, or holds one that another file has, too.
    """
    index, files = _files(folder)
    if not files:
        raise ModelError(f"{folder} has no weights{of and f' of {of}'}: no safetensors and no .bin files")
    result: dict[str, Stored] = {}
    place: dict[str, Path] = {}
    for file in files:
        for name, tensor in in_file(file).items():
            if index.get(name, file.name) != file.name:
                continue
            if name in place:
                raise ModelError(f"{name} is in {place[name]} and in {file.name}: keep the files of one model there")
            result[name], place[name] = tensor, file
    if lacking := sorted(index.keys() - result.keys()):
        file = folder / index[lacking[0]]
        raise ModelError(f"{file} lacks {len(lacking)} tensors of the index, such as {lacking[0]}; copy it again")
    return result


def in_file(file: Path) -> dict[str, Stored]:
    """The tensors of one file of safetensors, or of torch."""
    refuse_pointer(file)
    if file.suffix != ".safetensors":
        return {name: stored(tensor) for name, tensor in tensors_in(read_pickle(file)).items()}
    if not file.is_file():
        raise ModelError(f"{file} is missing; copy it again")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: _described(opened, file, name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error


def _files(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """What an index promises (tensor -> file), and the files; the first form that is there."""
    for whole, form in (("model.safetensors", "model*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        if (folder / whole).is_file():
            return {}, [folder / whole]
        if (index := folder / f"{whole}.index.json").exists():
            table = read_json(index).get("weight_map")
            if not isinstance(table, dict) or not all(Path(str(name)).name == name for name in table.values()):
                raise ModelError(f"{index} is damaged (its weight_map names no files of this folder); copy it again")
            return table, [folder / name for name in sorted(set(table.values()))]
        if found := sorted(folder.glob(form)):
            return {}, found
    return {}, []


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; ModelError where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} is damaged (it holds no object of JSON); copy it again")
    return found


def _described(opened: safe_open, file: Path, name: str) -> Stored:
    part = opened.get_slice(name)
    kind = part.get_dtype()
    if kind not in TYPES:
        raise ModelError(f"{file}: {name} is in {kind}, which Sightline does not convert; load it where it was made")
    shape, dtype = tuple(part.get_shape()), TYPES[kind]
    return Stored(shape, dtype, lambda: _read(file, name, shape, dtype))


def _read(file: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} can no longer be read ({error}); was it changed meanwhile?") from error
    if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
        raise ModelError(f"{file} can no longer be read ({name} is another tensor now); was it changed meanwhile?")
    return tensor
