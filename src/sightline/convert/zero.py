"""A checkpoint of DeepSpeed, in pieces of its ranks -> tensors by name, each put together when it is read.

The layout is that which DeepSpeed's zero_to_fp32.py documents. ZeRO-1 and 2 cut each group of parameters, laid end to
end, into one stretch per rank; ZeRO-3 cuts each parameter into equal shares. The pieces are the 32-bit weights that the
optimiser has; the half-precision ones beside them serve where the optimiser's files are not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sightline.convert.tensors import Stored, stored
from sightline.errors import CheckpointError
from sightline.model.pickles import read_pickle, tensors_in

WHOLE, PART, OPTIMIZER = "mp_rank_00_model_states.pt", "zero_pp_rank_*_mp_rank_00_model_states.pt", "*_optim_states.pt"
"""The files of a checkpoint: weights whole (ZeRO-1, 2, none) or as shares (ZeRO-3), and what the optimiser has."""

STRETCHES, SHARES = "single_partition_of_fp32_groups", "fp32_flat_groups"
"""Where an optimiser's file has its part of the weights: of ZeRO-1 and 2, and of ZeRO-3."""

Shapes = Sequence[Mapping[str, torch.Size]]
"""Names and shapes of the parameters, a mapping for each group, in the order in which they are laid end to end."""


def folder_of(place: Path) -> Path:
    """Where the files lie: in the folder itself, or in the newest one that its `latest` names."""
    latest = place / "latest"
    if not latest.is_file():
        return place
    folder = place / latest.read_text(encoding="utf-8", errors="replace").strip()
    if not folder.is_dir() or folder.parent != place:
        raise CheckpointError(f"{latest} names {folder.name}, which is not there; copy the whole checkpoint")
    return folder


def read(place: Path) -> dict[str, Stored]:
    """The tensors of the parameters that were trained; CheckpointError where pieces are missing or do not fit."""
    folder = folder_of(place)
    models, optimizers = _by_rank(folder, PART), _by_rank(folder, OPTIMIZER)
    whole = folder / WHOLE
    if not models and not whole.is_file():
        raise CheckpointError(f"{folder} is no checkpoint of DeepSpeed: it has neither {WHOLE} nor {PART}")
    state = read_pickle(models[0] if models else whole)
    shapes, shared = _shapes(state, folder), _aliases(state)
    if not optimizers and models:
        raise CheckpointError(f"{folder} has shares of ZeRO-3 but none of the optimiser's files ({OPTIMIZER})")
    if not optimizers or not shapes:
        trained = {name for group in shapes for name in group} | shared.keys()
        # Frozen ones lie beside them, unless they were left out.
        return {name: stored(it) for name, it in tensors_in(state).items() if not shapes or name in trained}
    saved = [_optimizer(file) for file in optimizers]
    ranks = saved[0].get("partition_count")
    count = max(ranks) if isinstance(ranks, list | tuple) else ranks
    if count != len(saved) or (models and len(models) != len(saved)):
        raise CheckpointError(f"{folder} is of {count} ranks, but has the files of {len(saved)}: copy the missing ones")
    try:
        result = _stage_3(saved, shapes) if SHARES in saved[0] else _stage_2(saved, shapes)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged, or of another version of DeepSpeed ({error!r})") from error
    return result | {name: result[other] for name, other in shared.items() if other in result}


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    def rank(path: Path) -> int:
        found = re.search(r"zero_pp_rank_(\d+)_", path.name)
        return int(found[1]) if found else -1

    return sorted((path for path in folder.glob(pattern) if rank(path) >= 0), key=rank)


def _shapes(state: Any, folder: Path) -> Shapes:
    """Of a file of weights; empty where it notes none, as without ZeRO."""
    found = state.get("param_shapes") if isinstance(state, dict) else None
    if found is None:
        return []
    groups = found if isinstance(found, list) else [found]
    if not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(f"{folder} is damaged, or of another version of DeepSpeed: no shapes of parameters")
    return groups


def _aliases(state: Any) -> dict[str, str]:
    """Parameters that are the same as another one."""
    pairs = state.get("shared_params") or {}
    return {str(a): str(b) for a, b in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _optimizer(file: Path) -> dict[str, Any]:
    content = read_pickle(file)
    found = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    # Which stage it is, is noted as an object of DeepSpeed's own; the keys tell it as well.
    if not isinstance(found, dict) or not (SHARES in found or STRETCHES in found):
        raise CheckpointError(f"{file} is no file of a ZeRO optimiser")
    return found


def _stage_2(saved: Sequence[dict[str, Any]], shapes: Shapes) -> dict[str, Stored]:
    result: dict[str, Stored] = {}
    filled = 2 * len(saved)
    for number, group in enumerate(shapes):
        stretches = [state[STRETCHES][number] for state in saved]
        room, offset = sum(stretch.numel() for stretch in stretches), 0
        for name, shape in group.items():
            length = torch.Size(shape).numel()
            result[name] = Stored(tuple(shape), torch.float32, partial(_cut, stretches, offset, length, shape))
            offset += length
        # A group is filled up to a multiple of twice the ranks; some versions take that off again.
        if not offset <= room <= -(-offset // filled) * filled:
            raise ValueError(f"{offset} numbers in a group of {room}")
    return result


def _cut(stretches: Sequence[torch.Tensor], start: int, length: int, shape: torch.Size) -> torch.Tensor:
    """A parameter that may begin in one rank's stretch and end in another's."""
    pieces, begin = [], 0
    for stretch in stretches:
        end = begin + stretch.numel()
        pieces.append(stretch[max(start - begin, 0) : max(min(start + length, end) - begin, 0)])
        begin = end
    return torch.cat(pieces).view(shape)


def _stage_3(saved: Sequence[dict[str, Any]], shapes: Shapes) -> dict[str, Stored]:
    flats = [state[SHARES] for state in saved]
    every = {name: shape for group in shapes for name, shape in group.items()}
    result: dict[str, Stored] = {}
    offset = 0
    for name, shape in every.items():
        share = -(-torch.Size(shape).numel() // len(saved))
        result[name] = Stored(tuple(shape), torch.float32, partial(_gather, flats, offset, share, shape))
        offset += share
    rooms = {sum(flat.numel() for flat in groups) for groups in flats}
    if rooms != {offset}:
        raise ValueError(f"{offset} numbers in shares of {sorted(rooms)}")
    return result


def _gather(flats: Sequence[Sequence[torch.Tensor]], offset: int, share: int, shape: torch.Size) -> torch.Tensor:
    """A parameter of which each rank has an equal share, the last one filled up."""
    pieces = [_cut(groups, offset, share, torch.Size([share])) for groups in flats]
    return torch.cat(pieces)[: torch.Size(shape).numel()].view(shape)
