"""A language model or a vision tower, and an adapter that peft wrote for it -> the model with the adapter in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, CLIPVisionModel

from sightline.convert.hub import located
from sightline.convert.lora import adapter_config, merged
from sightline.convert.shards import write_shards
from sightline.convert.tensors import in_folder
from sightline.errors import ModelError, shown
from sightline.files import appearing
from sightline.model.foreign import open_config
from sightline.model.llm import fetched, made_of
from sightline.model.quantize import calm_bitsandbytes
from sightline.model.reading import REPORTED, check_keys, quiet, reading
from sightline.runtime import say

CARRIED = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")
"""Files of the base that come along: configuration, tokenizer, image processor, and what it may be used for."""


CODE = ("*.py",)
"""What InternLM's folders have besides, for programs that ask to run it. Here it is copied, and never run."""


def merge(
    base: str, adapter: Path, out: Path, *, is_clip: bool, dtype: torch.dtype | None, max_shard_size: str, verify: bool
) -> float | None:
    """Write the merged model to `out`; returns by how much its outputs differ from those of base and adapter apart.

    Raises ModelError where the adapter was made for another base, or the base is not whole. Outputs are those of a
    fixed input, in float32; of an InternLM, which only code of its own can load, there are none.
    """
    adapter = located(adapter)
    adapter_config(adapter)
    family = None if is_clip else made_of(base)
    with reading(base):
        folder = fetched(base, weights=True)
    config = None if family else open_config(folder)
    own = _own_names(config, is_clip)
    tensors = {own(name): tensor for name, tensor in in_folder(folder).items()}
    changed = merged(tensors, adapter, own)
    if dtype is not None:
        changed = {name: tensor.to(dtype) for name, tensor in changed.items()}
    with appearing(out, needs=sum(tensor.nbytes for tensor in changed.values())) as partial:
        write_shards(changed, partial, max_shard_size=max_shard_size)
        for pattern in (*CARRIED, *(CODE if family else ())):
            for file in folder.glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copy(file, partial / file.name)
        if verify and family:
            say(f"no outputs were compared: only code of its own can compute with {base}, and none is run")
        return _difference(folder, adapter, partial, config, is_clip) if verify and not family else None


def _own_names(config: Any, is_clip: bool) -> Any:
    """A tensor's or parameter's name -> the one in the merged file."""
    if not is_clip:
        return str
    if "vision" not in config.model_type and not hasattr(config, "vision_config"):
        raise ModelError(f"--is-clip: this is a {shown(config.model_type)}, not a vision tower")
    # XTuner wraps a CLIPVisionModel, whose names have had one level more, and less, in versions of transformers.
    return lambda name: (
        name if name.startswith(("vision_model.", "text_", "visual_", "logit")) else f"vision_model.{name}"
    )


@torch.inference_mode()
def _difference(base: Path, adapter: Path, result: Path, config: Any, is_clip: bool) -> float:
    with calm_bitsandbytes():
        from peft import PeftModel

    kind: Any = CLIPVisionModel if is_clip else AutoModelForCausalLM

    def outputs(model: Any) -> torch.Tensor:
        model.eval()
        if is_clip:
            side = model.config.image_size
            picture = torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side)
            found: torch.Tensor = model(pixel_values=picture).last_hidden_state
            return found
        ids = torch.arange(3, min(35, config.vocab_size))[None]
        logits: torch.Tensor = model(input_ids=ids).logits
        return logits

    with quiet(), reading(base):
        whole, report = kind.from_pretrained(base, dtype=torch.float32, **REPORTED, trust_remote_code=False)
        check_keys(base, report, "missing", "mismatched")
        apart = outputs(PeftModel.from_pretrained(whole, adapter, trust_remote_code=False))
        together = outputs(kind.from_pretrained(result, dtype=torch.float32, trust_remote_code=False))
    return float((apart - together).abs().max())
