"""Tensors that are read when asked for -> files of safetensors, one tensor in memory while the next one is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from rich.progress import Progress, TimeRemainingColumn

from sightline.convert.tensors import TYPES, Stored
from sightline.errors import CheckpointError, ModelError
from sightline.runtime import console

A = TypeVar("A")
B = TypeVar("B")

NAMES = {dtype: name for name, dtype in TYPES.items()}
ORDER = list(NAMES)


def write_shards(tensors: Mapping[str, Stored], folder: Path, *, max_shard_size: str, name: str = "model") -> None:
    """Write `name*.safetensors` and, where there are several, their index.

    Raises ModelError for numbers that no weight has, CheckpointError where the disk refuses.
    """
    shards = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda tensor: None,
        filename_pattern=name + "{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(f"writing {folder.name}", total=sum(tensor.nbytes for tensor in tensors.values()))
        for file, names in shards.filename_to_tensors.items():
            try:
                _write({each: tensors[each] for each in names}, folder / file, lambda done: bar.advance(task, done))
            except OSError as error:
                raise CheckpointError(f"cannot write {folder / file}: {error.strerror}") from error
    if shards.is_sharded:
        table = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def ahead(items: Iterable[A], read: Callable[[A], B]) -> Iterator[tuple[A, B]]:
    """Each item with what `read` makes of it; a thread reads the next one while the caller works on this one.

    A disk reads and writes at once, as a plain copy lets it: in turns, a conversion would take the sum of both.
    """
    with ThreadPoolExecutor(1) as thread:
        rest = iter(items)
        coming = [(item, thread.submit(read, item)) for item in islice(rest, 1)]
        while coming:
            item, reading = coming.pop()
            result = reading.result()
            coming = [(after, thread.submit(read, after)) for after in islice(rest, 1)]
            yield item, result


def sound(name: str, wanted: Stored) -> torch.Tensor:
    """A tensor, read from the disk for good; ModelError where it has entries that are not finite."""
    tensor = wanted.read().contiguous()
    assert tensor.dtype == wanted.dtype and tuple(tensor.shape) == tuple(wanted.shape), name
    # aminmax keeps NaN, and is many times as fast as isfinite().
    if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(f"{name} has entries that are not finite in {kind}: it is damaged, or too large for {kind}")
    return tensor


def _write(tensors: Mapping[str, Stored], path: Path, advance: Callable[[int], None]) -> None:
    """One file, as https://github.com/huggingface/safetensors#format lays it out.

    The library's own writer wants all tensors of a file in memory.
    """
    # Wide numbers first, so that each tensor begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (ORDER.index(tensors[name].dtype), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, content in ahead(names, lambda name: sound(name, tensors[name])):
            file.write(content.reshape(-1).view(torch.uint8).numpy().data)
            advance(tensors[name].nbytes)
