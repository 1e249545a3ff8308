"""Files of torch.save are read without running anything in them."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.errors import ModelError
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
