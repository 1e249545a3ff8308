"""Small folders in the layout of liuhaotian's models, written by hand with what transformers and peft make.

Fields of config.json are those of the released llava-v1.5-7b and llava-v1.6-vicuna-7b.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import CLIPVisionModel, LlamaForCausalLM

from sightline.model.assemble import assemble, make_prompter
from sightline.model.save import save
from sightline.recipe import ModelRecipe

Tensors = dict[str, torch.Tensor]

V15: dict[str, Any] = {
    **{"_name_or_path": "llava-v1.5-7b", "architectures": ["LlavaLlamaForCausalLM"], "bos_token_id": 1},
    **{"eos_token_id": 2, "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "hidden_act": "silu"},
    **{"hidden_size": 4096, "image_aspect_ratio": "pad", "initializer_range": 0.02, "intermediate_size": 11008},
    **{"max_length": 4096, "max_position_embeddings": 4096, "mm_hidden_size": 1024},
    **{"mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None, "mm_use_im_patch_token": False},
    **{"mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2},
    **{"mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava", "num_attention_heads": 32},
    **{"num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1},
    **{"rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16"},
    **{"transformers_version": "4.31.0", "tune_mm_mlp_adapter": False, "tune_mm_vision_resampler": False},
    **{"unfreeze_mm_vision_tower": False, "use_cache": True, "use_mm_proj": True, "vocab_size": 32000},
}
"""config.json of liuhaotian/llava-v1.5-7b."""

V16: dict[str, Any] = {
    **{key: value for key, value in V15.items() if key not in ("max_length", "torch_dtype")},
    **{"_name_or_path": "./checkpoints/vicuna-7b-v1-6", "attention_bias": False, "attention_dropout": 0.0},
    **{"image_aspect_ratio": "anyres", "image_crop_resolution": 224, "image_split_resolution": 224},
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    **{"mm_patch_merge_type": "spatial_unpad", "mm_projector_lr": None, "mm_vision_tower_lr": 2e-06},
    **{"rope_theta": 10000.0, "tokenizer_model_max_length": 4096, "tokenizer_padding_side": "right"},
    **{"transformers_version": "4.36.2", "unfreeze_mm_vision_tower": True},
}
"""config.json of liuhaotian/llava-v1.6-vicuna-7b."""

NOT_WRITTEN = {"_name_or_path", "max_length", "transformers_version", "mm_vision_tower"}
"""Fields of the released files that say nothing of the model, or where a file is."""

SMALL_GRIDS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
"""Width and height, as the official files have them."""

LLM = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LLM |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6}


def make_parts(folder: Path, *, kind: str = "legacy", **changes: Any) -> Path:
    """`llm/` and `tower/`, as far from zero as trained weights, so that pictures matter."""
    tiny.make_llm(folder / "llm", kind=kind, **changes)
    tiny.make_tower(folder / "tower")
    torch.manual_seed(7)
    for part, model in (("llm", LlamaForCausalLM), ("tower", CLIPVisionModel)):
        loaded: Any = model.from_pretrained(folder / part)
        for parameter in loaded.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        loaded.save_pretrained(folder / part)
    return folder


def llm_tensors(parts: Path) -> Tensors:
    llm: Any = LlamaForCausalLM.from_pretrained(parts / "llm")
    kept = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    if llm.config.tie_word_embeddings:
        del kept["lm_head.weight"]
    return kept


def tower_tensors(parts: Path) -> Tensors:
    """By their official names, with the buffer that older versions of transformers wrote."""
    tower: Any = CLIPVisionModel.from_pretrained(parts / "tower")
    prefix = "model.vision_tower.vision_tower.vision_model."
    named = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    return {**named, f"{prefix}embeddings.position_ids": torch.arange(17)[None]}


def projector_tensors(seed: int = 3) -> Tensors:
    torch.manual_seed(seed)
    return {
        "model.mm_projector.0.weight": 0.2 * torch.randn(64, 32),
        "model.mm_projector.0.bias": 0.2 * torch.randn(64),
        "model.mm_projector.2.weight": 0.2 * torch.randn(64, 64),
        "model.mm_projector.2.bias": 0.2 * torch.randn(64),
    }


def newline() -> Tensors:
    torch.manual_seed(4)
    return {"model.image_newline": 0.2 * torch.randn(64)}


def small_config(parts: Path, released: dict[str, Any] = V15, **changes: Any) -> dict[str, Any]:
    llm = json.loads((parts / "llm" / "config.json").read_text(encoding="utf-8"))
    sizes = {"vocab_size": llm["vocab_size"], "mm_hidden_size": 32, "mm_vision_tower": str(parts / "tower")}
    sizes |= {"eos_token_id": llm["eos_token_id"], "bos_token_id": llm["bos_token_id"]}
    sizes |= {"tie_word_embeddings": llm["tie_word_embeddings"]}
    if "image_grid_pinpoints" in released:
        sizes["image_grid_pinpoints"] = SMALL_GRIDS
    return released | LLM | sizes | changes


def write_json(folder: Path, content: dict[str, Any], name: str = "config.json") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def write_v15(parts: Path, out: Path, **changes: Any) -> Path:
    """As released: two pytorch_model files and their index, a tokenizer, no vision tower, and mm_projector.bin."""
    write_json(out, small_config(parts, **changes))
    tensors, table = llm_tensors(parts) | projector_tensors(), {}
    names = list(tensors)
    for number in range(2):
        file = f"pytorch_model-{number + 1:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in names[number::2]}, out / file)
        table |= dict.fromkeys(names[number::2], file)
    write_json(out, {"metadata": {}, "weight_map": table}, "pytorch_model.bin.index.json")
    torch.save(projector_tensors(), out / "mm_projector.bin")
    write_tokenizer(parts, out)
    return out


def write_v16(parts: Path, out: Path, **changes: Any) -> Path:
    """As released: safetensors with the vision tower inside."""
    write_json(out, small_config(parts, V16, **changes))
    tensors = llm_tensors(parts) | projector_tensors() | tower_tensors(parts) | newline()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(parts, out)
    return out


def write_projector(parts: Path, out: Path, **changes: Any) -> Path:
    """As the first stage leaves it: config.json and mm_projector.bin."""
    named = {"_name_or_path": str(parts / "llm"), "tune_mm_mlp_adapter": True}
    write_json(out, small_config(parts, **(named | changes)))
    torch.save(projector_tensors(), out / "mm_projector.bin")
    return out


def write_lora(parts: Path, out: Path, **changes: Any) -> tuple[Path, Tensors]:
    """As finetune_lora.sh leaves it; and what peft itself makes of language model and adapter."""
    llm: Any = LlamaForCausalLM.from_pretrained(parts / "llm")
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])
    model = get_peft_model(llm, settings)
    torch.manual_seed(6)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(out)
    write_json(out, small_config(parts, **changes))
    beside = {f"base_model.model.{name}": tensor for name, tensor in projector_tensors().items()}
    torch.save(beside, out / "non_lora_trainables.bin")
    return out, dict(model.merge_and_unload().state_dict())


def write_tokenizer(parts: Path, out: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        settings = (parts / "llm" / name).read_text(encoding="utf-8")
        (out / name).write_text(settings, encoding="utf-8")


def assembled(world: Path, out: Path, **changes: Any) -> Path:
    """A Hugging Face directory as Sightline assembles it."""
    parts = {"llm": str(world / "llm"), "vision_tower": str(world / "tower"), "template": "vicuna"}
    spec = ModelRecipe.model_validate(parts | changes)
    torch.manual_seed(0)
    return save(assemble(spec, make_prompter(spec)), out)
