"""Files written tensor by tensor, beside those of the safetensors library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sightline.convert.shards import ahead, write_shards
from sightline.convert.tensors import in_file, stored
from sightline.errors import CheckpointError, ModelError
from sightline.files import appearing

TENSORS = {
    "b.half": torch.randn(3, 5).half(),
    "a.brain": torch.randn(7).bfloat16(),
    'name with "quotes" and \u00e9': torch.randn(2, 3, 4).transpose(0, 2),
    "number": torch.tensor(4),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "true": torch.tensor([True, False]),
    "none": torch.empty(0, 4),
    "wide": torch.randn(2, dtype=torch.float64),
}


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    write_shards({name: stored(t) for name, t in TENSORS.items()}, tmp_path, max_shard_size="1GB")
    save_file({name: t.contiguous() for name, t in TENSORS.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_library_reads_each_shard(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": torch.randn(100, 10) for number in range(5)}
    write_shards({name: stored(t) for name, t in tensors.items()}, tmp_path, max_shard_size="9KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_an_entry_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bad has entries that are not finite in float16"):
        write_shards({"bad": stored(torch.tensor([1.0, float("nan")]).half())}, tmp_path, max_shard_size="1GB")


def test_the_next_one_is_read_while_the_caller_works() -> None:
    begun = [threading.Event() for _ in range(3)]

    def read(number: int) -> int:
        begun[number].set()
        return number * 10

    for number, result in ahead(range(3), read):
        assert result == number * 10
        assert number == 2 or begun[number + 1].wait(10)


def test_nothing_is_read_after_what_failed() -> None:
    asked = []

    def read(number: int) -> int:
        asked.append(number)
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        list(ahead([1, 0, 2, 3], read))
    assert asked == [1, 0]


def test_a_file_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "old.safetensors")
    tensors = in_file(tmp_path / "old.safetensors")
    for other in (torch.zeros(5), torch.zeros(4).half()):
        save_file({"a": other}, tmp_path / "old.safetensors")
        with pytest.raises(ModelError, match=r"can no longer be read \(a is another tensor now\)"):
            write_shards(tensors, tmp_path, max_shard_size="1GB")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("size", [3, 10**6], ids=["when closed", "in the middle"])
def test_no_space_left(tmp_path: Path, size: int) -> None:
    tensors = {name: stored(torch.zeros(size)) for name in "abc"}
    with (
        pytest.raises(CheckpointError, match="no space left while writing"),
        appearing(tmp_path / "new", needs=1) as new,
    ):
        (new / "model.safetensors").symlink_to("/dev/full")
        write_shards(tensors, new, max_shard_size="1GB")
    assert not list(tmp_path.iterdir())


def test_what_fails_in_the_thread_fails_here() -> None:
    def read(number: int) -> int:
        return 1 // number

    seen: list[tuple[int, int]] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(ahead([1, 0, 1], read))
    assert seen == [(1, 1)]
    empty: Callable[[int], int] = read
    assert list(ahead([], empty)) == []


def test_a_file_that_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    """As on a FAT disk, whose files end at 4 GB."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"^cannot write .*model\.safetensors: File too large$"):
            write_shards({"large": stored(torch.zeros(10_000))}, tmp_path, max_shard_size="1GB")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
