"""Folders and checkpoints as XTuner 0.2.0 writes them, made by hand from a language model and a vision tower."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

RANK, ALPHA = 4, 6
"""Of all adapters."""


def as_transformers_4(tower: Path) -> Path:
    """A CLIP with the names that transformers had when XTuner was written."""
    names = {f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in weights(tower).items()}
    save_file(names, tower / "model.safetensors", metadata={"format": "pt"})
    return tower


def weights(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def projector(inner: int, outer: int, depth: int = 2) -> Tensors:
    """Random, by XTuner's names."""
    torch.manual_seed(7)
    result = {}
    for number in range(depth):
        result[f"model.{2 * number}.weight"] = 0.1 * torch.randn(outer, outer if number else inner)
        result[f"model.{2 * number}.bias"] = 0.1 * torch.randn(outer)
    return result


def factors(base: Tensors, *kinds: str) -> Tensors:
    """Random LoRA factors for the matrices of these kinds, by the names of the model that peft wraps."""
    torch.manual_seed(8)
    result = {}
    for name, weight in base.items():
        if name.endswith(tuple(f"{kind}.weight" for kind in kinds)):
            layer = name.removesuffix(".weight")
            result[f"{layer}.lora_A.weight"] = 0.3 * torch.randn(RANK, weight.shape[1])
            result[f"{layer}.lora_B.weight"] = 0.3 * torch.randn(weight.shape[0], RANK)
    assert result
    return result


def merged(base: Tensors, lora: Tensors) -> Tensors:
    """Written down from the paper: W + alpha / r * B A."""
    result = dict(base)
    for name in base:
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" in lora:
            product = lora[f"{layer}.lora_B.weight"] @ lora[f"{layer}.lora_A.weight"]
            result[name] = base[name] + ALPHA / RANK * product
    return result


def write_adapter(folder: Path, lora: Tensors, base: str = "somewhere/else", **changes: Any) -> Path:
    """As peft does it."""
    folder.mkdir(parents=True)
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in lora})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "bias": "none"}
    config |= {"base_model_name_or_path": base, "init_lora_weights": True, "lora_dropout": 0.05, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({f"base_model.model.{name}": tensor for name, tensor in lora.items()}, folder / "adapter_model.bin")
    return folder


def write_projector(folder: Path, tensors: Tensors, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    first = tensors["model.0.weight"]
    config = {
        **{"architectures": ["ProjectorModel"], "model_type": "projector", "bias": True, "hidden_act": "gelu"},
        **{"depth": len(tensors) // 2, "visual_hidden_size": first.shape[1], "llm_hidden_size": first.shape[0]},
        "auto_map": {"AutoModel": "modeling_projector.ProjectorModel"},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def write_notes(folder: Path, llm: Path, tower: Path, template: str = "vicuna") -> None:
    """The configuration of a training, which must never be run."""
    (folder / "xtuner_config.py").write_text(
        f"""from xtuner.utils import PROMPT_TEMPLATE
raise SystemExit("run")
llm_name_or_path = {str(llm)!r}
visual_encoder_name_or_path = {str(tower)!r}
prompt_template = PROMPT_TEMPLATE.{template}
batch_size = 16
model = dict(type=LLaVAModel, visual_select_layer=-2, llm=dict(quantization_config=dict(load_in_4bit=True)))
"""
    )


def checkpoint(llm: Tensors | None = None, tower: Tensors | None = None, projector: Tensors | None = None) -> Tensors:
    """The state_dict of XTuner's LLaVAModel; factors get the names that peft has in memory."""
    result = {}
    for part, tensors in (("llm", llm), ("visual_encoder", tower), ("projector", projector)):
        for name, tensor in (tensors or {}).items():
            wrapped = "base_model.model." if ".lora_" in name else ""
            name = name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
            result[f"{part}.{wrapped}{name}"] = tensor
    return result


def write_mmengine(file: Path, state: Tensors) -> Path:
    """As mmengine saves it: objects of its classes lie beside the tensors, and are not there when it is read."""
    module = types.ModuleType("mmengine_gone")
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": "mmengine_gone"})  # type: ignore[attr-defined]
    sys.modules["mmengine_gone"] = module
    history = module.HistoryBuffer()
    history.values = [1.0, 2.0]
    meta = {"cfg": "a = 1", "seed": 0, "iter": 10, "epoch": 1, "dataset_meta": history}
    content = {"meta": meta, "state_dict": state, "message_hub": {"log_scalars": {"loss": history}}}
    torch.save(content, file)
    del sys.modules["mmengine_gone"]
    return file
