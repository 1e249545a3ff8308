"""Checkpoints of DeepSpeed, made by hand in the layout that its zero_to_fp32.py documents.

Those of DeepSpeed 0.19.8 itself (ZeRO-1, 2 and 3 on 1 to 3 ranks; frozen and shared parameters, several groups and
subgroups) were read once as well, and gave what its zero_to_fp32.py makes of them, bit for bit.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]


class ZeroStageEnum(IntEnum):
    """DeepSpeed notes the stage as an object of a class that is not there when the file is read."""

    gradients = 2
    weights = 3

    def __reduce__(self) -> Any:
        return type(self), (int(self),)


ZeroStageEnum.__module__ = "deepspeed_gone"


def _save(content: dict[str, Any], file: Path) -> None:
    module = types.ModuleType("deepspeed_gone")
    module.ZeroStageEnum = ZeroStageEnum  # type: ignore[attr-defined]
    sys.modules["deepspeed_gone"] = module
    torch.save(content, file)
    del sys.modules["deepspeed_gone"]


def _halves(state: Tensors) -> list[dict[str, torch.Tensor]]:
    """Two groups of parameters, as an optimiser with two rates has them."""
    names = list(state)
    middle = (len(names) + 1) // 2
    return [{name: state[name] for name in part} for part in (names[:middle], names[middle:])]


def _shapes(groups: list[dict[str, torch.Tensor]], too_much: int) -> list[OrderedDict[str, torch.Size]]:
    found = [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups]
    if too_much:
        found[0]["llm.more"] = torch.Size([too_much])
    return found


def _common(shapes: Any) -> dict[str, Any]:
    return {
        "param_shapes": shapes,
        "buffer_names": [],
        "shared_params": {},
        "ds_version": "0.16.2",
        "meta": {"iter": 1},
    }


def write_stage_2(
    folder: Path, state: Tensors, ranks: int, *, too_much: int = 0, frozen: Tensors | None = None
) -> Path:
    """Each group laid end to end, filled up to a multiple of twice the ranks, and cut into one stretch per rank.

    `frozen` are parameters that do not learn: they lie beside the others in half precision, unless they are left out.
    """
    folder.mkdir(parents=True)
    groups = _halves(state)
    half = {name: tensor.bfloat16() for name, tensor in {**(frozen or {}), **state}.items()}
    torch.save({"module": half, **_common(_shapes(groups, too_much))}, folder / "mp_rank_00_model_states.pt")
    stretches = []
    for group in groups:
        flat = torch.cat([torch.empty(0), *(tensor.float().flatten() for tensor in group.values())])
        length = -(-len(flat) // (2 * ranks)) * 2 * ranks
        stretches.append(torch.cat([flat, torch.full((length - len(flat),), 99.0)]).chunk(ranks) if length else ())
    for rank in range(ranks):
        mine = [stretch[rank].clone() if stretch else torch.empty(0) for stretch in stretches]
        optimizer = {
            "zero_stage": ZeroStageEnum.gradients,
            "partition_count": [ranks, ranks],
            "single_partition_of_fp32_groups": mine,
            "base_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        }
        file = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        _save({"optimizer_state_dict": optimizer, "ds_version": "0.16.2"}, file)
    return folder


def write_stage_3(folder: Path, state: Tensors, ranks: int, *, too_much: int = 0) -> Path:
    """Each parameter filled up and cut into equal shares; a rank's shares end to end, in two flat groups."""
    folder.mkdir(parents=True)
    groups = _halves(state)
    flats: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for group in groups:
        shares: list[list[torch.Tensor]] = [[torch.empty(0)] for _ in range(ranks)]
        for tensor in group.values():
            length = -(-tensor.numel() // ranks)
            flat = torch.cat([tensor.float().flatten(), torch.full((length * ranks - tensor.numel(),), 99.0)])
            for rank, share in enumerate(flat.split(length)):
                shares[rank].append(share)
        for rank in range(ranks):
            flats[rank].append(torch.cat(shares[rank]))
    for rank in range(ranks):
        empty = {name: torch.empty(0) for name in state}
        torch.save(
            {"module": empty, **_common(_shapes(groups, too_much))},
            folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt",
        )
        optimizer = {"zero_stage": ZeroStageEnum.weights, "partition_count": ranks, "fp32_flat_groups": flats[rank]}
        for number, flat in enumerate(flats[rank]):
            flat.ds_id = number  # type: ignore[attr-defined]
        _save(
            {"optimizer_state_dict": optimizer},
            folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
    return folder
