"""What every format is read as and written from: a model's configuration, its prompter, its tensors by hub names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from sightline.convert.learned import Adapter
from sightline.convert.tensors import Stored
from sightline.errors import ModelError
from sightline.model.projector import depth_of, readable
from sightline.model.save import hub_state
from sightline.model.vision import check_feature_layer
from sightline.prompt.prompter import Prompter


@dataclass(frozen=True, slots=True)
class Source:
    """A vision-language model whose weights are still in their files."""

    path: Path
    kind: str
    """What it was found to be, for the user: `an official LLaVA`."""
    config: Any
    """A LlavaConfig or LlavaNextConfig."""
    prompter: Prompter
    tensors: Mapping[str, Stored]
    """By the hub's names (`language_model.model.*`, ...), whole and of the shapes that the configuration says."""
    parts: Mapping[str, str] | None = None
    """Where the language model and the vision tower came from, for formats that name them: `llm`, `vision_tower`."""
    adapters: Mapping[str, Adapter | None] | None = None
    """Of a run, how its `llm` and `vision_tower` learned: by an adapter (also in `tensors`), or None where in full."""

    def to(self, dtype: torch.dtype) -> Source:
        """With its floating-point weights in another format."""
        return replace(self, tensors={name: tensor.to(dtype) for name, tensor in self.tensors.items()})

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The format that most of the numbers have."""
        bytes_of: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            bytes_of[tensor.dtype] = bytes_of.get(tensor.dtype, 0) + tensor.nbytes
        return max(bytes_of, key=lambda dtype: bytes_of[dtype])


def hub_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model in the hub's layout, from its configuration alone.

    Raises ModelError where that is none of a model.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(readable(config))
    except Exception as error:  # transformers looks at values when it uses them, and trips in every way there is
        raise ModelError(f"config.json describes no model that can be built ({error!r}); copy it again") from error
    meta = dict(model.state_dict())
    return {name: tuple(t.shape) for name, t in hub_state(meta, config, moved=False).items()}


def checked(source: Source) -> Source:
    """The source itself; raises ModelError where tensors are missing, left over or of another shape."""
    check_feature_layer(source.config, source.path)
    if depth_of(source.config) > 2:
        raise ModelError(f"{source.path} has a projector of {depth_of(source.config)} layers: no other format holds it")
    wanted, found = hub_shapes(source.config), source.tensors
    odd = {
        "missing": sorted(wanted.keys() - found.keys()),
        "left over": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & found.keys() if wanted[n] != tuple(found[n].shape)),
    }
    if any(odd.values()):
        if odd["of another shape"]:
            name = odd["of another shape"][0]
            odd["of another shape"][0] = f"{name} {list(found[name].shape)} instead of {list(wanted[name])}"
        shown = "; ".join(f"{len(names)} {what}, such as {names[0]}" for what, names in odd.items() if names)
        raise ModelError(f"the weights of {source.path} ({source.kind}) do not fit its configuration: {shown}")
    return source
