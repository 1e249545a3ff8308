"""Keys and tensors -> a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.convert.shards import ahead, sound
from sightline.convert.tensors import Stored
from sightline.errors import MissingExtra, ModelError

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
"""Number formats of weights, and llama.cpp's numbers for files of them (`general.file_type`)."""

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""GGUF's types that torch has as well."""

BATCH = 1 << 24
"""Numbers that are quantised at a time."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a GGUF file is to say."""

    arch: str
    keys: Mapping[str, Any]
    """Python's types decide GGUF's: int -> uint32, float -> float32, lists of them -> arrays."""
    tensors: Mapping[str, Stored]
    quantize: str
    """A key of FILE_TYPES; what has one dimension stays in 32 bits."""

    @property
    def nbytes(self) -> int:
        """Of the tensors in the file."""
        return sum(_size(tensor, self._kind(tensor)) for tensor in self.tensors.values())

    def write(self, path: Path, advance: Callable[[int], None]) -> None:
        """Write the file; `advance` is told the bytes of each tensor. Raises ModelError where a number does not fit."""
        gguf = gguf_package()
        writer = gguf.GGUFWriter(path, self.arch)
        general = {"general.file_type": FILE_TYPES[self.quantize], "general.quantization_version": 2}
        for key, value in {**self.keys, **general}.items():
            kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
        for name, tensor in self.tensors.items():
            kind = self._kind(tensor)
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), _size(tensor, kind), raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for _, data in ahead(self.tensors, self._data):
                writer.write_tensor_data(data)
                advance(len(data))
        finally:
            writer.close()

    def _data(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        return _encoded(name, sound(name, tensor), self._kind(tensor))

    def _kind(self, tensor: Stored) -> Any:
        kinds = gguf_package().GGMLQuantizationType
        if len(tensor.shape) < 2:
            return kinds.F32
        if self.quantize == "q8_0" and tensor.shape[-1] % 32:
            return kinds.F16  # its rows are not made of whole blocks
        return kinds[self.quantize.upper()]


def gguf_package() -> Any:
    """The package `gguf`; raises MissingExtra where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "gguf", "writing GGUF files") from None
    return gguf


def _size(tensor: Stored, kind: Any) -> int:
    numbers, nbytes = gguf_package().GGML_QUANT_SIZES[kind]
    return int(torch.Size(tensor.shape).numel() // numbers * nbytes)


def _encoded(name: str, tensor: torch.Tensor, kind: Any) -> np.ndarray:
    """The bytes of a tensor, uint8 [N]."""
    if kind.name in PLAIN:
        result = tensor.to(PLAIN[kind.name])
        if kind.name == "F16" and tensor.dtype != torch.float16 and not result.isfinite().all():
            raise ModelError(f"{name} has numbers that float16 cannot hold; write it in f32")
        return result.reshape(-1).view(torch.uint8).numpy()
    quantize = gguf_package().quants.quantize
    rows = tensor.reshape(-1, tensor.shape[-1])
    # In batches, whose copies in 32 bits are small.
    pieces = [quantize(some.to(torch.float32).numpy(), kind) for some in rows.split(max(1, BATCH // rows.shape[-1]))]
    return np.concatenate(pieces)
