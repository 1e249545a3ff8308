"""Files of torch.save are read without running anything in them."""

from __future__ import annotations

import collections
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from sightline.errors import ModelError
from sightline.limits import Limits, use
from sightline.model.pickles import Foreign, read_pickle, tensors_in


class Calls:
    """What an attacker would put in a file: a call, made while it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class History(list[int]):
    """A list of another program, with attributes."""


STATE = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor([1, 2]), "half": torch.ones(2, dtype=torch.bfloat16)}


def test_tensors_and_plain_values(tmp_path: Path) -> None:
    ordered = collections.OrderedDict(STATE)
    content = {
        "state_dict": ordered,
        "meta": {"iter": 3, "names": ["x", ("y", None)], "some": {1, 2}},
        "size": torch.Size([4]),
    }
    torch.save({**content, "dtype": torch.float16}, tmp_path / "x.pth")
    read = read_pickle(tmp_path / "x.pth")
    assert (read["meta"], read["size"], read["dtype"]) == (content["meta"], torch.Size([4]), torch.float16)
    tensors = tensors_in(read)
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) and tensors[name].dtype == STATE[name].dtype for name in STATE)


def test_before_torch_16(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(tensors_in(read_pickle(tmp_path / "x.bin"))["a"], STATE["a"])


def test_parameters_and_what_torch_saves_a_model_as(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    torch.save({"module": layer.state_dict(), "weight": layer.weight}, tmp_path / "x.pth")
    assert torch.equal(tensors_in(read_pickle(tmp_path / "x.pth"))["bias"], layer.bias)


@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch {}"),
        Calls(os.mkdir, "{}"),
        Calls(eval, "open('{}', 'w')"),
        Calls(getattr, "text", "upper"),
        Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, "{}"))),
    ],
    ids=["system", "mkdir", "eval", "getattr", "nested"],
)
def test_nothing_is_run(tmp_path: Path, call: Calls) -> None:
    trap = tmp_path / "trap"
    function, arguments = call.call
    call.call = function, tuple(a.format(trap) if isinstance(a, str) else a for a in arguments)
    torch.save({"state_dict": STATE, "hub": call, "deep": [History([1])], "np": np.ones(3)}, tmp_path / "x.pth")
    read = read_pickle(tmp_path / "x.pth")
    assert not trap.exists()
    assert isinstance(read["hub"], Foreign) and isinstance(read["deep"][0], Foreign)
    assert tensors_in(read).keys() == STATE.keys()


def test_tensors_with_attributes(tmp_path: Path) -> None:
    """As DeepSpeed's, which note where they belong: torch then writes more than a plain tensor."""
    plain, parameter = torch.arange(6.0).view(2, 3), torch.nn.Parameter(torch.ones(2))
    plain.ds_id, parameter.ds_id = 5, 6  # type: ignore[attr-defined]
    torch.save({"a": plain, "b": parameter}, tmp_path / "x.pth")
    read = tensors_in(read_pickle(tmp_path / "x.pth"))
    assert torch.equal(read["a"], plain) and torch.equal(read["b"], parameter)


def test_a_tensor_that_would_be_made_by_another_function(tmp_path: Path) -> None:
    trap = tmp_path / "run"
    torch.save({"a": Calls(torch._tensor._rebuild_from_type_v2, os.mkdir, str, (str(trap),), {})}, tmp_path / "x.pth")
    assert tensors_in(read_pickle(tmp_path / "x.pth")) == {}
    assert not trap.exists()


def test_storages_of_no_kind(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02X\x01\x00\x00\x00aQ.")
        archive.writestr("archive/version", "3")
    with pytest.raises(ModelError, match="damaged"):
        read_pickle(tmp_path / "x.pth")


def test_a_tensor_beyond_its_data(tmp_path: Path) -> None:
    storage = torch.ones(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    for size, stride, offset in (((8,), (1,), 0), ((2, 2), (1, 9), 0), ((4,), (1,), 1), ((2,), (-1,), 3)):
        call = Calls(torch._utils._rebuild_tensor_v2, typed, offset, size, stride, False, collections.OrderedDict())
        torch.save({"a": call}, tmp_path / "x.pth")
        with pytest.raises(ModelError, match="damaged"):
            read_pickle(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04 and then nothing", b"\x80\x02N."])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_pickle(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="damaged"):
        read_pickle(tmp_path / "x.pth")


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "x.pth"))
    with pytest.raises(ModelError, match="TorchScript"):
        read_pickle(tmp_path / "x.pth")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        read_pickle(tmp_path / "x.pth")


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def usual_limits() -> Iterator[None]:
    yield
    use(Limits())


def written(path: Path, content: bytes, legacy: bool) -> Path:
    """A pickle where torch keeps one."""
    if legacy:
        head = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {}))
        path.write_bytes(head + content + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3")
    return path


DEEP = b")" + b"2\x86" * 60
"""A pair of itself, sixty deep: to hash, compare or print it would take until the end of the world."""
CALL_SET, CALL_ORDERED = b"c__builtin__\nset\n", b"ccollections\nOrderedDict\n"
MAKE = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOSTILE = {
    "key": b"\x80\x02}" + DEEP + b"K\x01s.",
    "keys": b"\x80\x02}(" + DEEP + b"K\x01u.",
    "dict": b"\x80\x02(" + DEEP + b"K\x01d.",
    "set": b"\x80\x04\x8f(" + DEEP + b"\x90.",
    "frozenset": b"\x80\x04(" + DEEP + b"\x91.",
    "call of set": b"\x80\x02" + CALL_SET + b"](" + DEEP + b"e\x85R.",
    "call of OrderedDict": b"\x80\x02" + CALL_ORDERED + b"](](" + DEEP + b"K\x01ee\x85R.",
    "persistent id": b"\x80\x02" + DEEP + b"Q.",
    "storage": b"\x80\x02(U\x07storage" + DEEP + DEEP + b"U\x03cpuK\x01tQ.",
    "shape": b"\x80\x02" + MAKE + b"(NK\x00J\xff\xff\xff\x7f\x85" + DEEP + b"\x85\x89NtR.",
    "bytearray": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
    "bytes": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
    "text": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"x.",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "stack": b"\x80\x02" + b"s" * 10 + b".",
    "into a text": b"\x80\x02U\x01aK\x01a.",
    "gigantic number": b"\x80\x02}\x8a\x09" + b"\x00" * 8 + b"\x01K\x01s.",
    "extension": b"\x80\x02\x84\x01\x00\x00\x00.",
}


def nested(depth: int) -> bytes:
    """A pair of itself as a key, written with what torch's own careful reader takes, which would hash it for ever."""
    pairs = (b"h" + bytes([number]) + b"\x86q" + bytes([number + 1]) for number in range(depth))
    return b"\x80\x02}Nq\x00" + b"".join(pairs) + b"K\x01s."


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_weights_that_transformers_would_read(tmp_path: Path, file: str) -> None:
    from sightline.model.llm import load_llm
    from sightline.model.vision import load_tower, vision_config

    for folder, load in (
        (tiny.make_llm(tmp_path / "llm"), load_llm),
        (tiny.make_tower(tmp_path / "tower"), lambda name: load_tower(name, vision_config(name, -2))),
    ):
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / file)
        if file != "pytorch_model.bin":
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights, file)}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        load(str(folder))
        written(folder / file, nested(12), False)
        with pytest.raises(ModelError, match=f"cannot read .*{file}: it is damaged"):
            load(str(folder))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_file_of_weights_holds(tmp_path: Path, name: str, legacy: bool) -> None:
    path = written(tmp_path / "x.pth", HOSTILE[name], legacy)
    with pytest.raises(ModelError, match="damaged") as error:
        read_pickle(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + CALL_SET + b"N](" + DEEP + b"e\x85NtR.",
        b"(](" + DEEP + b"ei__builtin__\nset\n.",
        b"(" + CALL_SET + b"](" + DEEP + b"eo.",
    ],
    ids=["type", "instance", "object"],
)
def test_other_ways_to_a_set_make_none(tmp_path: Path, content: bytes) -> None:
    assert isinstance(read_pickle(written(tmp_path / "x.pth", content, legacy=False)), Foreign)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_place_in_the_memo_reserves_nothing(tmp_path: Path, legacy: bool) -> None:
    path = written(tmp_path / "x.pth", b"\x80\x02}U\x01ar\xff\xff\xff\xffK\x01s.", legacy)
    assert read_pickle(path) == {"a": 1}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_is_too_large(tmp_path: Path, legacy: bool, usual_limits: None) -> None:
    path = written(tmp_path / "x.pth", b"\x80\x02(" + b"]" * 200_000 + b"l.", legacy)
    read_pickle(path)
    use(Limits(pickle_megabytes=0.1))
    with pytest.raises(ModelError, match=r"more than 0\.1 MB beside .*--raise-limit pickle_megabytes=1$"):
        read_pickle(path)


def test_a_tensor_that_repeats_its_data(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4).expand(10**12, 4)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="damaged"):
        read_pickle(tmp_path / "x.pth")
    torch.save({"a": torch.arange(4).expand(1, 4)}, tmp_path / "y.pth")
    assert read_pickle(tmp_path / "y.pth")["a"].tolist() == [[0, 1, 2, 3]]


def test_a_legacy_storage_of_more_than_there_is(tmp_path: Path) -> None:
    mark = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu\x8a\x06\x00\x00\x00\x00\x00\x01NtQ"
    with pytest.raises(ModelError, match="damaged"):
        read_pickle(written(tmp_path / "x.pth", b"\x80\x02" + mark + b".", legacy=True))


def test_keys_that_are_in_use(tmp_path: Path) -> None:
    content = {2: 1, "a": 3, None: 4, (1, "b"): 5, -1.5: 6, True: 8}
    torch.save(content, tmp_path / "x.pth")
    assert read_pickle(tmp_path / "x.pth") == content
