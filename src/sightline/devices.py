"""What a device can do and what is wished of it -> what is used. `choose` is pure; `look` asks torch for the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sightline.errors import UserError, shown

TYPES = ("cuda", "npu", "xpu", "mps", "cpu")
"""The devices that Sightline knows by name, in the order in which `auto` takes them."""

VISIBLE = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
}
"""The variables that hide devices of a type from a program."""

SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Facts:
    """What a device can do."""

    type: str
    name: str = ""
    count: int = 1
    bfloat16: bool = False
    """In hardware: what is only emulated is slower than float32."""
    float64: bool = True
    varlen: bool = False
    """torch's flash attention of variable length: CUDA from compute capability 8.0 on."""
    four_bit: bool = False
    """4-bit weights and 8-bit optimisers, by bitsandbytes."""
    fused_adamw: bool = True
    """torch's one-kernel AdamW is there, beyond doubt."""
    pinned: bool = False
    """Host memory can be pinned, so that copies overlap with computing."""


@dataclass(frozen=True)
class Wishes:
    """What a recipe or a command asks for."""

    device: str = "auto"
    dtype: str = "auto"
    training: bool = False
    four_bit: bool = False
    """4-bit weights or an 8-bit optimiser."""


@dataclass(frozen=True)
class Choice:
    """What is used."""

    device: str
    dtype: Dtype
    attention: Literal["varlen", "per sample"]
    """How packed samples attend: one flash kernel for all, or one causal call for each."""
    four_bit: bool
    pin_memory: bool
    fused_adamw: bool
    sums: Dtype | Literal["float64"]
    """The format in which numbers are added up over devices."""
    remarks: tuple[str, ...] = ()
    """What the device lacks, and what is used instead."""


def choose(found: Sequence[Facts], wishes: Wishes, hidden: Mapping[str, str] | None = None) -> Choice:
    """The device, the number format and the ways of computing that fit the wishes best.

    What is wished as `auto` falls back where the device lacks it; what is wished by name and lacking is a UserError.
    `hidden`: the values of the variables in `VISIBLE` that are set.
    """
    facts = _device(found, wishes.device, hidden or {})
    name = facts.type if wishes.device == "auto" else wishes.device
    dtype, remarks = _dtype(facts, wishes)
    if wishes.four_bit and not facts.four_bit:
        raise UserError(
            f"no 4-bit weights and no 8-bit optimiser on {facts.type} (Sightline uses bitsandbytes on cuda, xpu and "
            "cpu): set tune.llm=lora and optim.optimizer=adamw"
        )
    return Choice(
        device=name,
        dtype=dtype,
        # Flash attention knows half precision only.
        attention="varlen" if facts.varlen and dtype != "float32" else "per sample",
        four_bit=wishes.four_bit,
        pin_memory=facts.pinned,
        fused_adamw=facts.fused_adamw,
        sums="float64" if facts.float64 else "float32",
        remarks=remarks,
    )


def _device(found: Sequence[Facts], wanted: str, hidden: Mapping[str, str]) -> Facts:
    by_type = {facts.type: facts for facts in found}
    if wanted == "auto":
        return next(by_type[kind] for kind in TYPES if kind in by_type)
    kind, colon, number = wanted.partition(":")
    if kind not in TYPES or (colon and not number.isdecimal()):
        raise UserError(
            f"unknown device {shown(wanted)}: use auto, {', '.join(sorted(TYPES))}, or one with a number, cuda:1"
        )
    if kind not in by_type:
        others = ", ".join(facts.type for facts in found)
        raise UserError(
            f"no device {shown(wanted)} here (found: {others}){_why(kind, hidden)}; use --device auto or cpu"
        )
    if colon and int(number) >= by_type[kind].count:
        raise UserError(f"no device {shown(wanted)} here: there are {by_type[kind].count} of them, counted from 0")
    return by_type[kind]


def _why(kind: str, hidden: Mapping[str, str]) -> str:
    variable = VISIBLE.get(kind, "")
    if variable in hidden:
        return f": {variable} is {shown(hidden[variable])}"
    return ": the package torch_npu is needed, see docs/ascend-npu.md" if kind == "npu" else ""


def _dtype(facts: Facts, wishes: Wishes) -> tuple[Dtype, tuple[str, ...]]:
    wanted = SHORT.get(wishes.dtype, wishes.dtype)
    if wanted == "auto":
        if facts.type in ("cpu", "mps"):
            return "float32", ()  # half precision saves memory there, but seldom time
        if facts.bfloat16:
            return "bfloat16", ()
        called = facts.name or facts.type
        return "float16", (f"{called} does not compute in bfloat16: float16 with a scaled loss is used instead",)
    if wanted not in ("float32", "bfloat16", "float16"):
        raise UserError(f"unknown number format {shown(wishes.dtype)}: use auto, float32, bfloat16 or float16")
    if wanted == "bfloat16" and not facts.bfloat16:
        raise UserError(f"{facts.name or facts.type} does not compute in bfloat16: use float16, float32 or auto")
    if wanted == "float16" and facts.type == "cpu" and wishes.training:
        raise UserError("engine.dtype: float16 does not train on the CPU; use bfloat16 or float32")
    return ("float32" if wanted == "float32" else "bfloat16" if wanted == "bfloat16" else "float16"), ()


@cache
def look() -> tuple[Facts, ...]:
    """The devices of this machine, the CPU last."""
    import torch

    _load_npu()
    found = []
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type in TYPES:
        found.append(_facts(accelerator.type))
    return (*found, Facts("cpu", "CPU", bfloat16=True, four_bit=True))


def _facts(kind: str) -> Facts:
    import torch

    count = torch.accelerator.device_count()
    if kind == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        major = torch.cuda.get_device_capability()[0]
        flash = torch.version.cuda is not None and major >= 8
        name = torch.cuda.get_device_name()
        return Facts("cuda", name, count, bfloat16=able, varlen=flash, four_bit=True, pinned=True)
    if kind == "xpu":
        able = torch.xpu.is_bf16_supported(including_emulation=False)
        return Facts("xpu", torch.xpu.get_device_name(), count, bfloat16=able, four_bit=True, pinned=True)
    if kind == "npu":
        npu = getattr(torch, "npu")  # noqa: B009  # torch_npu puts it there
        able = bool(npu.is_bf16_supported())
        return Facts("npu", npu.get_device_name(0), count, bfloat16=able, float64=False, fused_adamw=False, pinned=True)
    able = torch.backends.mps.is_macos_or_newer(14, 0)
    return Facts("mps", "Apple GPU", count, bfloat16=able, float64=False)


def _load_npu() -> None:
    """Ascend's package makes `npu` known to torch; newer torches load it themselves, unless told not to."""
    from importlib.util import find_spec

    if find_spec("torch_npu") is not None:
        import torch_npu  # noqa: F401
