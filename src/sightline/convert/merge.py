"""A language model or a vision tower, and an adapter that peft wrote for it -> the model with the adapter in it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, CLIPVisionModel

from sightline.convert.hf import hub_name
from sightline.convert.hub import located
from sightline.convert.lora import PREFIX, adapter_config, adapter_tensors, check_for_peft, merged
from sightline.convert.shards import write_shards
from sightline.convert.tensors import in_folder, read_json
from sightline.convert.verify import CLOSE, SAME, logits
from sightline.convert.vocabulary import EMBEDDING, HEAD
from sightline.errors import CheckpointError, ModelError, shown
from sightline.files import appearing
from sightline.model.foreign import open_config
from sightline.model.llm import fetched, made_of
from sightline.model.load import VLM, load
from sightline.model.parts import whole_name
from sightline.model.quantize import calm_bitsandbytes
from sightline.model.reading import REPORTED, WHOLE, check_keys, quiet, reading
from sightline.model.save import write_json
from sightline.runtime import say

CARRIED = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")
"""Files of the base that come along: configuration, tokenizer, image processor, and what it may be used for."""


CODE = ("*.py",)
"""What InternLM's folders have besides, for programs that ask to run it. Here it is copied, and never run."""


def merge(
    base: str, adapter: Path, out: Path, *, is_clip: bool, dtype: torch.dtype | None, max_shard_size: str, verify: bool
) -> float | None:
    """Write the merged model to `out`; returns by how much its outputs differ from those of base and adapter apart.

    The base is a language model, a vision tower (`is_clip`) or a whole LLaVA. Raises ModelError where the adapter was
    made for another base, or the base is not whole, and CheckpointError where the outputs differ: then there is no
    `out`. Outputs are those of a fixed input, in float32; of an InternLM, which only code of its own can load, there
    are none.
    """
    adapter = located(adapter)
    settings = adapter_config(adapter)
    family = None if is_clip else made_of(base)
    with reading(base):
        folder = fetched(base, weights=True)
    config = None if family else open_config(folder)
    if verify:
        check_for_peft(adapter)
    own = _own_names(config, is_clip)
    tensors = {own(name): tensor for name, tensor in in_folder(folder).items()}
    tied = _tied(config, is_clip) if config is not None else None
    if tied is not None:
        tensors[tied.head] = tensors[tied.embedding]
    changed = merged(tensors, adapter, own)
    apart = tied is not None and any(changed[name] is not tensors[name] for name in (tied.head, tied.embedding))
    if tied is not None and (not apart or settings.get("ensure_weight_tying")):
        del changed[tied.head]
        apart = False
    if dtype is not None:
        changed = {name: tensor.to(dtype) for name, tensor in changed.items()}
    with appearing(out, needs=sum(tensor.nbytes for tensor in changed.values())) as new:
        write_shards(changed, new, max_shard_size=max_shard_size)
        for pattern in (*CARRIED, *(CODE if family else ())):
            for file in folder.glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copy(file, new / file.name)
        if apart:
            _write_apart(new / "config.json")
        if verify and family:
            say(f"no outputs were compared: only code of its own can compute with {base}, and none is run")
        return _difference(folder, adapter, new, config, is_clip) if verify and not family else None


@dataclass(frozen=True, slots=True)
class _Tied:
    """The names of an embedding and of the head that is the same tensor."""

    embedding: str
    head: str


def _tied(config: Any, is_clip: bool) -> _Tied | None:
    """What a language model has tied; with an adapter on one of them, peft leaves the other as it was."""
    text = config.get_text_config()
    if is_clip or not (config.tie_word_embeddings or text.tie_word_embeddings):
        return None
    if config.model_type in WHOLE:
        return _Tied(EMBEDDING, HEAD)
    with torch.device("meta"), quiet():
        model = AutoModelForCausalLM.from_config(config)
    names = {id(module): name for name, module in model.named_modules()}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return _Tied(*(f"{names[id(module)]}.weight" for module in ends))


def _write_apart(file: Path) -> None:
    """Say in a config.json that embedding and head are two tensors."""
    content = read_json(file)
    for section in (content, content.get("text_config")):
        if section is not None:
            section["tie_word_embeddings"] = False
    write_json(file, content)


def _own_names(config: Any, is_clip: bool) -> Any:
    """A tensor's or parameter's name -> the one in the merged file."""
    if config is not None and config.model_type in WHOLE:
        return partial(hub_name, config=config)
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
    """The largest difference of outputs; raises CheckpointError where it is more than rounding makes."""
    open_base = partial(_opened, config=config, is_clip=is_clip)
    # Of transformers and peft, about names of arguments that they will change.
    with quiet(), reading(base), warnings.catch_warnings(action="ignore", category=FutureWarning):
        whole, outputs = open_base(base)
        stored = next(iter(in_folder(result).values())).dtype
        apart = outputs(_wrapped(whole, adapter))
        together, outputs = open_base(result)
        merged_outputs = outputs(together)
    difference, spread = float((apart - merged_outputs).abs().max()), float(apart.std())
    if not difference <= (SAME if stored == torch.float32 else CLOSE) * max(spread, 1e-6):
        raise CheckpointError(
            f"merged and unmerged, the outputs differ by up to {difference:.3g} (their standard deviation is "
            f"{spread:.3g}), so nothing was written; please report this"
        )
    return difference


def _wrapped(whole: Any, adapter: Path) -> Any:
    """The model with the adapter beside its weights, by peft, which knows names in one spelling only."""
    with calm_bitsandbytes():
        from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict

    kind = whole.config.model_type
    if kind not in WHOLE and not isinstance(whole, CLIPVisionModel):
        return PeftModel.from_pretrained(whole, adapter, trust_remote_code=False)
    rename = whole_name if kind in WHOLE else _clip_name
    config: Any = PeftConfig.from_pretrained(adapter, trust_remote_code=False)
    if not isinstance(config.target_modules, str):  # a list of names; else a pattern
        config.target_modules = {rename(name) for name in config.target_modules}
    wrapped = get_peft_model(whole, config)
    state = {f"{PREFIX}{rename(name)}": tensor.read() for name, tensor in adapter_tensors(adapter).items()}
    if odd := set_peft_model_state_dict(wrapped, state).unexpected_keys:
        raise ModelError(f"the adapter {adapter} does not belong to this model ({len(odd)} tensors, such as {odd[0]})")
    return wrapped


def _clip_name(name: str) -> str:
    return name.removeprefix("vision_model.")


def _opened(folder: Path, *, config: Any, is_clip: bool) -> tuple[Any, Callable[[Any], torch.Tensor]]:
    """A model in float32 on the CPU, and what tells the outputs of it, or of what peft makes of it."""
    if config.model_type in WHOLE:
        vlm = load(folder, device="cpu", dtype="float32")
        return vlm.model, lambda model: logits(VLM(model, vlm.prompter))
    kind: Any = CLIPVisionModel if is_clip else AutoModelForCausalLM
    model, report = kind.from_pretrained(folder, dtype=torch.float32, **REPORTED, trust_remote_code=False)
    check_keys(folder, report, "missing", "mismatched")

    def outputs(model: Any) -> torch.Tensor:
        model.eval()
        if is_clip:
            side = model.config.image_size
            image = torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side)
            found: torch.Tensor = model(pixel_values=image).last_hidden_state
            return found
        ids = torch.arange(3, min(35, model.config.vocab_size))[None]
        found = model(input_ids=ids).logits
        return found

    return model, outputs
