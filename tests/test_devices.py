"""What is chosen on each kind of device, without having one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sightline.devices import TYPES, Choice, Facts, Wishes, choose, look
from sightline.errors import UserError
from sightline.runtime import pick_device, pick_dtype

CPU = Facts("cpu", "CPU", bfloat16=True, four_bit=True)
H100 = Facts("cuda", "NVIDIA H100", 8, bfloat16=True, varlen=True, four_bit=True, pinned=True)
T4 = Facts("cuda", "Tesla T4", four_bit=True, pinned=True)
ARC = Facts("xpu", "Intel Arc", bfloat16=True, four_bit=True, pinned=True)
ASCEND = Facts("npu", "Ascend910B3", 8, bfloat16=True, float64=False, fused_adamw=False, pinned=True)
ASCEND_A = replace(ASCEND, name="Ascend910A", bfloat16=False)
APPLE = Facts("mps", "Apple GPU", bfloat16=True, float64=False)

EXPECTED = {
    "cpu": (CPU, Choice("cpu", "float32", "per sample", False, False, True, "float64")),
    "cuda": (H100, Choice("cuda", "bfloat16", "varlen", False, True, True, "float64")),
    "xpu": (ARC, Choice("xpu", "bfloat16", "per sample", False, True, True, "float64")),
    "npu": (ASCEND, Choice("npu", "bfloat16", "per sample", False, True, False, "float32")),
    "mps": (APPLE, Choice("mps", "float32", "per sample", False, False, True, "float32")),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_auto_on_each_device(kind: str) -> None:
    facts, expected = EXPECTED[kind]
    found = (facts,) if kind == "cpu" else (facts, CPU)
    assert choose(found, Wishes()) == expected
    assert choose(found, Wishes(device=kind)) == expected


def test_a_cuda_device_without_bfloat16_falls_back_and_says_so() -> None:
    made = choose((T4, CPU), Wishes())
    assert (made.dtype, made.attention) == ("float16", "per sample")
    assert made.remarks == ("Tesla T4 does not compute in bfloat16: float16 with a scaled loss is used instead",)
    assert choose((ASCEND_A, CPU), Wishes()).dtype == "float16"


def test_what_is_wished_by_name_is_refused_where_it_is_lacking() -> None:
    with pytest.raises(UserError, match="Tesla T4 does not compute in bfloat16: use float16, float32 or auto"):
        choose((T4, CPU), Wishes(dtype="bf16"))
    for found in ((ASCEND, CPU), (APPLE, CPU)):
        with pytest.raises(UserError, match=rf"no 4-bit weights .* on {found[0].type} .* tune\.llm=lora"):
            choose(found, Wishes(four_bit=True))
    for facts in (H100, ARC, CPU):
        assert choose((facts,), Wishes(four_bit=True)).four_bit


def test_float16_on_the_cpu_answers_but_does_not_train() -> None:
    assert choose((CPU,), Wishes(dtype="float16")).dtype == "float16"
    with pytest.raises(UserError, match="float16 does not train on the CPU"):
        choose((CPU,), Wishes(dtype="fp16", training=True))


def test_full_precision_has_no_flash_attention() -> None:
    assert choose((H100, CPU), Wishes(dtype="float32")).attention == "per sample"
    assert choose((H100, CPU), Wishes(dtype="float16")).attention == "varlen"


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"no device 'cuda' here \(found: cpu\); use --device auto or cpu"):
        choose((CPU,), Wishes(device="cuda"))
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is ''"):
        choose((CPU,), Wishes(device="cuda"), {"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(UserError, match="ASCEND_RT_VISIBLE_DEVICES is '9'"):
        choose((CPU,), Wishes(device="npu"), {"ASCEND_RT_VISIBLE_DEVICES": "9"})
    with pytest.raises(UserError, match=r"the package torch_npu is needed, see docs/ascend-npu\.md"):
        choose((CPU,), Wishes(device="npu"))


def test_devices_with_numbers() -> None:
    assert choose((H100, CPU), Wishes(device="cuda:7")).device == "cuda:7"
    with pytest.raises(UserError, match="there are 8 of them, counted from 0"):
        choose((H100, CPU), Wishes(device="cuda:8"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "", "meta", "tpu"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown device .*: use auto, cpu, cuda, mps, npu, xpu"):
        choose((H100, CPU), Wishes(device=name))
    with pytest.raises(UserError, match="unknown number format"):
        choose((CPU,), Wishes(dtype="int8"))


def test_this_machine() -> None:
    found = look()
    assert found[-1].type == "cpu" and all(facts.type in TYPES for facts in found)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
