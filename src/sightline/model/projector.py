"""A projector of 1 to 4 layers; and where its weights come from: a run, a model folder, a file of XTuner or of LLaVA.

transformers has a projector of exactly two layers. One layer is written for it as two of which the second changes
nothing, and is equal there. Three or four have no such form: their folders are refused by transformers, and load here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from sightline.errors import ModelError, shown
from sightline.model.pickles import read_pickle, tensors_in
from sightline.model.weights import FINISHED, LEARNED, checkpoints
from sightline.pointers import refuse_pointer
from sightline.runtime import say

DEPTH_KEY = "projector_depth"
"""Where config.json notes another number of layers than two."""

DEEPEST = 4
"""Layers that a projector can have."""

NAMES = (
    (re.compile(r"(?:^|\.)multi_modal_projector\.linear_(\d+)\.(weight|bias)$"), lambda n: n),
    (re.compile(r"(?:^|\.)mm_projector\.(\d+)\.(weight|bias)$"), lambda n: n // 2 + 1),
    (re.compile(r"(?:^|\.)mm_projector()\.(weight|bias)$"), lambda n: 1),
    (re.compile(r"^projector\.model\.(\d+)\.(weight|bias)$"), lambda n: n // 2 + 1),
    (re.compile(r"^model\.(\d+)\.(weight|bias)$"), lambda n: n // 2 + 1),
)
"""How transformers, LLaVA (several layers; one) and XTuner (checkpoint; folder) name a layer, and its number."""

NEWLINE = re.compile(r"(?:^|\.)image_newline$")
"""How they all name what ends a row of tiles."""


class DeepProjector(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, config: Any, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.act = ACT2FN[config.projector_hidden_act]
        width = config.text_config.hidden_size
        for number in range(1, depth + 1):
            before = config.vision_config.hidden_size if number == 1 else width
            self.add_module(f"linear_{number}", nn.Linear(before, width, bias=config.multimodal_projector_bias))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.get_submodule("linear_1")(image_features)
        for number in range(2, self.depth + 1):
            states = self.get_submodule(f"linear_{number}")(self.act(states))
        return states


def new_projector(config: Any, depth: int) -> nn.Module:
    """A projector of random weights; the depth is noted in the configuration."""
    if depth == 2:
        return LlavaMultiModalProjector(config)
    setattr(config, DEPTH_KEY, depth)
    return DeepProjector(config, depth)


def depth_of(config: Any) -> int:
    """The number of layers that a model's configuration notes."""
    noted = getattr(config, DEPTH_KEY, None) or 2
    if not isinstance(noted, int) or not 1 <= noted <= DEEPEST:
        of = getattr(config, "name_or_path", None) or "the model"
        raise ModelError(f"the config.json of {of} says {DEPTH_KEY} {shown(noted)}, no number from 1 to {DEEPEST}")
    return noted


def exported_state(state: dict[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """The tensors of a model as they are written: one layer gets a second one that changes nothing."""
    first = next((name for name in state if name.endswith("multi_modal_projector.linear_1.weight")), None)
    if depth != 1 or first is None:
        return state
    second, weight = first.replace("linear_1", "linear_2"), state[first]
    added = {second: torch.eye(len(weight), dtype=weight.dtype)}
    if first.replace("weight", "bias") in state:
        added[second.replace("weight", "bias")] = torch.zeros(len(weight), dtype=weight.dtype)
    return {**state, **added}


def exported_act(act: str, depth: int) -> str:
    """What config.json names as activation; where transformers has no such projector, words that it stops at."""
    if depth == 1:
        return "linear"
    return act if depth == 2 else f"{act} between {depth} layers: only Sightline loads this projector"


def readable(config: Any) -> Any:
    """The configuration of a folder, as transformers builds a model from it: without the words of `exported_act`."""
    if depth_of(config) != 2:
        config.projector_hidden_act = "gelu"
    return config


def deeper(report: dict[str, Any], depth: int) -> dict[str, Any]:
    """What transformers says of a folder's tensors, without those of the layers that it does not know."""
    known = {f"linear_{number}" for number in range(3, depth + 1)}
    odd = [key for key in report["unexpected_keys"] if not known & set(key.split("."))]
    return {**report, "unexpected_keys": odd}


def read_own_projector(model: Any, folder: str | Path) -> None:
    """Where its configuration notes another depth than two: give a model that transformers has read its projector."""
    depth = depth_of(model.config)
    if depth == 2:
        return
    place = Path(folder if Path(folder).is_dir() else snapshot_download(str(folder), local_files_only=True))
    projector = new_projector(model.config, depth).to(model.device, model.dtype)
    _fill(projector, _read(place))
    model.model.multi_modal_projector = projector


@dataclass
class Found:
    """A projector in files."""

    source: Path
    """The file, or the folder of files, that it was in."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """By the names of transformers: linear_1.weight, ..."""
    newline: torch.Tensor | None = None
    """The `image_newline` that a LLaVA-NeXT has beside it."""
    left_over: Counter[str] = field(default_factory=Counter)
    """How many other tensors there were, by the beginning of their names."""

    @property
    def depth(self) -> int:
        return max((int(name.split(".")[0].removeprefix("linear_")) for name in self.tensors), default=0)

    def add(self, name: str, tensor: Any) -> None:
        for pattern, number in NAMES:
            if match := pattern.search(name):
                own = f"linear_{number(int(match[1] or 0))}.{match[2]}"
                if own in self.tensors and not torch.equal(self.tensors[own], tensor):
                    raise ModelError(f"{self.source} holds more than one projector (two of {own}); name one file of it")
                self.tensors[own] = tensor
                return
        if NEWLINE.search(name):
            self.newline = tensor
        else:
            self.left_over[name.split(".")[0]] += 1


def load_projector(model: Any, source: str) -> Found:
    """Replace a model's projector by that of `source`, and say what was loaded and what was left over there.

    Returns what was found. Raises ModelError where there is none, or one of other layers, shapes or contents.
    """
    if not source:
        raise ModelError("model.projector_from: an empty name; leave it out for a new projector")
    found = find_projector(Path(source))
    _fill(model.model.multi_modal_projector, found)
    if found.newline is not None and not hasattr(model.model, "image_newline"):
        found.left_over["image_newline"] += 1
    others = ", ".join(f"{count} of {name}" for name, count in found.left_over.most_common(4))
    say(
        f"projector: {len(found.tensors)} tensors from {found.source}, none missing; left over there: "
        f"{others or 'nothing'}"
    )
    return found


def _fill(projector: nn.Module, found: Found) -> None:
    own = projector.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in found.tensors]
    wrong += [f"there is {name}, too" for name in found.tensors if name not in own]
    wrong += [
        f"{name} is {list(found.tensors[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in found.tensors and found.tensors[name].shape != tensor.shape
    ]
    wrong += [f"{name} {what}" for name, tensor in found.tensors.items() if (what := unsound(tensor))]
    if wrong:
        depth = len([name for name in own if name.endswith("weight")])
        hint = f" (its depth is {found.depth}; model.projector_depth is {depth})" if found.depth != depth else ""
        raise ModelError(
            f"the projector of {found.source} does not fit this language model and vision tower: "
            f"{'; '.join(wrong[:4])}{hint}"
        )
    projector.load_state_dict(found.tensors)


def unsound(tensor: torch.Tensor) -> str | None:
    """Why a tensor can be no weight; None where it can."""
    if not tensor.is_floating_point():
        return f"is of {str(tensor.dtype).removeprefix('torch.')}"
    return None if tensor.isfinite().all() else "has entries that are not finite"


def find_projector(source: Path) -> Found:
    """The projector of a file, a folder or a run; raises ModelError where there is none."""
    if not source.exists():
        raise ModelError(f"model.projector_from: no folder or file {source}; train the first stage, or name another")
    for place in _places(source):
        found = _read(place)
        if found.tensors:
            return found
    if any(source.glob("zero_*")) or any(source.glob("*_zero_pp_rank_*_mp_rank_*")):
        raise ModelError(
            f"model.projector_from: {source} is a checkpoint of DeepSpeed in pieces; put them together with its "
            f"zero_to_fp32.py and name the file that makes"
        )
    raise ModelError(
        f"model.projector_from: {source} holds no projector (multi_modal_projector.*, mm_projector.* or "
        f"projector.model.* in a .safetensors, .bin or .pth file)"
    )


def _places(source: Path) -> Iterator[Path]:
    """Where to look: a run holds its model in `hf`, XTuner's work folder checkpoints, its model folders `projector`."""
    yield source
    if source.is_dir():
        yield source / FINISHED
        yield source / "projector"
        yield source / LEARNED
        yield from reversed(checkpoints(source))
        yield from sorted(source.glob("iter_*.pth"), key=lambda path: (len(path.name), path.name), reverse=True)


def _read(place: Path) -> Found:
    """What one file or folder holds; of a folder, its safetensors, or else the files that torch has saved."""
    kinds = ("*.safetensors", "*.bin", "mp_rank_00_model_states.pt") if place.is_dir() else ("",)
    for kind in kinds:
        found = Found(place)
        for file in sorted(file for file in place.glob(kind) if file.is_file()) if kind else [place]:
            for name, tensor in _tensors(file):
                found.add(name, tensor)
        if found.tensors:
            break
    if place.is_dir() and _noted_depth(place) == 1:
        found.tensors = {name: tensor for name, tensor in found.tensors.items() if name.startswith("linear_1.")}
    return found


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Names and tensors, which are read when they are asked for."""
    refuse_pointer(file)
    if file.suffix in (".bin", ".pt", ".pth"):
        yield from tensors_in(read_pickle(file)).items()
    elif file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    wanted = any(pattern.search(name) for pattern in (NEWLINE, *(known for known, _ in NAMES)))
                    yield name, tensors.get_tensor(name) if wanted else None
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the weights in {file} are damaged ({error}); copy or convert them again") from error


def _noted_depth(folder: Path) -> int:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get(DEPTH_KEY) or 2)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return 2
