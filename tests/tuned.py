"""A tiny model tuned in some way, with the gradients of a step; and the names of all tensors that then learn.

The model has a Llama of two layers (seven matrices and two norms each), a CLIP of three layers of which two are used
(six linear layers and two norms with biases: 16 tensors each), and a projector of two linear layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tiny
import torch

from sightline.data.collate import Batch, batches
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.plan import Plan
from sightline.model.assemble import assemble, make_prompter
from sightline.model.attention import packed_attention
from sightline.model.load import VLM
from sightline.model.tune import apply_tuning, quantize
from sightline.recipe import Recipe, load_recipe
from sightline.runtime import console
from sightline.train.engine import Engine

LLM_LAYER = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
TOWER_LAYER = [f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")] + ["mlp.fc1", "mlp.fc2"]
TEXT, TOWER, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."
RATES = ["optim.lr=2e-3", "optim.vision_lr=5e-4", "optim.projector_lr=3e-3"]


def write_world(folder: Path) -> Path:
    """The tiny recipe, and beside its language model another one, whose widths 4 bits on the CPU can take."""
    tiny.make_llm(folder / "wide", intermediate_size=128)
    return tiny.write_recipe(folder)


def both(prefix: str, names: list[str]) -> set[str]:
    return {f"{prefix}{name}.{kind}" for name in names for kind in ("weight", "bias")}


def lora(prefix: str, names: list[str]) -> set[str]:
    return {f"{prefix}{name}.lora_{ab}.default.weight" for name in names for ab in "AB"}


def expected(llm: str, vision: str, projector: str) -> set[str]:
    """The names of all tensors that learn, written out; vision is frozen, full, lora, full-1 or lora-1 (last layer)."""
    names: set[str] = set()
    for layer in (f"{TEXT}layers.0.", f"{TEXT}layers.1."):
        if llm == "full":
            names |= {f"{layer}{name}.weight" for name in LLM_LAYER}
            names |= {f"{layer}{name}_layernorm.weight" for name in ("input", "post_attention")}
        if llm in ("lora", "qlora"):
            names |= lora(layer, LLM_LAYER)
    if llm == "full":
        names |= {"lm_head.weight", f"{TEXT}embed_tokens.weight", f"{TEXT}norm.weight"}
    for number in (1,) if vision.endswith("-1") else (0, 1):
        layer = f"{TOWER}encoder.layers.{number}."
        if vision.startswith("full"):
            names |= both(layer, [*TOWER_LAYER, "layer_norm1", "layer_norm2"])
        if vision.startswith("lora"):
            names |= lora(layer, TOWER_LAYER)
    if vision == "full":
        names |= {f"{TOWER}embeddings.class_embedding", f"{TOWER}embeddings.patch_embedding.weight"}
        names |= {f"{TOWER}embeddings.position_embedding.weight"} | both(TOWER, ["pre_layrnorm"])
    if projector == "full":
        names |= both(PROJECTOR, ["linear_1", "linear_2"])
    return names


def tuning(path: Path, llm: str, vision: str, projector: str) -> list[str]:
    """What a recipe is changed by, so that its parts are tuned in these ways."""
    tower, _, last = vision.partition("-")
    found = [f"tune.llm={llm}", f"tune.vision_tower={tower}", f"tune.projector={projector}", *RATES]
    found += [f"tune.vision_last_n={last}"] if last else []
    found += [f"model.llm={path.parent / 'wide'}"] if llm == "qlora" else []
    for part, how in (("llm", llm), ("vision", tower)):
        found += [f"tune.{part}_lora.r=4", f"tune.{part}_lora.alpha=8"] if how in ("lora", "qlora") else []
    return found


def set_up(path: Path, *changes: str) -> tuple[VLM, Dataset, Engine, Recipe]:
    recipe = load_recipe(str(path), changes)
    torch.manual_seed(0)
    prompter = make_prompter(recipe.model)
    dataset = open_dataset(recipe.data, prompter, recipe.batch.max_length, console)
    vlm = assemble(recipe.model, prompter)
    if recipe.tune.llm == "qlora":
        dtype = torch.bfloat16 if recipe.engine.dtype == "bfloat16" else torch.float32
        quantize(vlm.model, recipe.tune, device=torch.device("cpu"), dtype=dtype)
    return vlm, dataset, Engine(vlm, apply_tuning(vlm.model, recipe.tune, recipe.optim), recipe), recipe


def packs(dataset: Dataset) -> Iterator[Batch]:
    plan = Plan(tokens=dataset.tokens, global_batch=12, epochs=9, seed=0)
    return batches(dataset, plan.packs(0, rank=0, world=1, budget=256), workers=0)


def accumulate(vlm: VLM, dataset: Dataset, engine: Engine) -> float:
    """The gradients of twelve rows with pictures and without; the mean loss."""
    total, targets = 0.0, int(dataset.targets[Plan(dataset.tokens, 12, 9, 0).samples(0)].sum())
    with packed_attention(vlm.model):
        for batch in packs(dataset):
            loss = engine.loss_sum(batch)
            engine.backward(loss / targets)
            total += float(loss.detach())
    return total / targets


def learners(vlm: VLM) -> set[str]:
    return {name for name, parameter in vlm.model.named_parameters() if parameter.requires_grad}
