"""Runs of every kind are converted tensor by tensor, to the same bits as the model that the run itself has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from runs import contents

from sightline import cli
from sightline.convert import checkpoint
from sightline.model.assemble import assemble, make_prompter
from sightline.model.save import save
from sightline.recipe import ModelRecipe, load_recipe
from sightline.train.loop import train

SMALL = {"r": 4, "alpha": 8}
LORA: dict[str, Any] = {"llm": "lora", "llm_lora": SMALL}
FROZEN: dict[str, Any] = {"projector": "frozen"}
GRIDS = [[56, 112], [112, 56]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, and a whole LLaVA and LLaVA-NeXT of them with other projectors, one of them of one layer."""
    folder = tmp_path_factory.mktemp("world")
    tiny.write_recipe(folder)
    tiny.make_llm(folder / "tied", tie_word_embeddings=True)
    parts = {"llm": str(folder / "llm"), "vision_tower": str(folder / "tower"), "template": "vicuna"}
    for name, more in {
        "whole": {},
        "whole16": {},
        "linear": {"projector_depth": 1},
        "whole_next": {"next": True, "grid_pinpoints": GRIDS},
    }.items():
        spec = ModelRecipe.model_validate(parts | more)
        torch.manual_seed(len(name))
        save(assemble(spec, make_prompter(spec)), folder / name, dtype=torch.bfloat16 if "16" in name else None)
    return folder


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, LORA),
    "dora": ({}, {"llm": "lora", "llm_lora": {**SMALL, "dora": True}}),
    "saved": ({}, {"llm": "lora", "llm_lora": {**SMALL, "modules_to_save": ["lm_head", "norm"]}}),
    "full": ({}, {"llm": "full", "vision_tower": "full"}),
    "last": ({}, {"llm": "frozen", "vision_tower": "full", "vision_last_n": 1}),
    "tied": ({"llm": "tied"}, LORA),
    "tied_full": ({"llm": "tied"}, {"llm": "full"}),
    "linear": ({"projector_depth": 1}, {"llm": "frozen"}),
    "frozen_projector": ({"projector_from": "whole"}, LORA | FROZEN),
    "frozen_linear_projector": ({"projector_from": "linear", "projector_depth": 1}, LORA | FROZEN),
    "drawn_projector": ({}, LORA | FROZEN),
    "from_model": ({"from_model": "whole"}, LORA),
    "from_model_full": ({"from_model": "whole"}, {"llm": "full"}),
    "from_half": ({"from_model": "whole16"}, LORA),
    "from_linear": ({"from_model": "linear"}, LORA),
    "from_model_frozen": ({"from_model": "whole"}, LORA | FROZEN),
    "from_model_other_projector": ({"from_model": "whole16", "projector_from": "whole"}, LORA | FROZEN),
    "next": ({"next": True}, LORA),
    "next_grids": ({"next": True, "grid_pinpoints": GRIDS}, {"llm": "frozen"}),
    "next_drawn_newline": ({"next": True, "projector_from": "whole"}, LORA | FROZEN),
    "from_next": ({"from_model": "whole_next"}, LORA),
    "from_next_frozen": ({"from_model": "whole_next", "projector_from": "whole"}, LORA | FROZEN),
    "from_next_other_grids": ({"from_model": "whole_next", "grid_pinpoints": [[112, 112]]}, LORA),
    "made_next": ({"from_model": "whole", "next": True}, LORA),
}
DRAWN = {"drawn_projector", "next_drawn_newline"}
PLACES = ("llm", "from_model", "projector_from")


def trained(world: Path, folder: Path, case: str) -> Path:
    model, tune = CASES[case]
    model = {key: str(world / value) if key in PLACES else value for key, value in model.items()}
    if "from_model" not in model:
        model = {"llm": str(world / "llm"), "vision_tower": str(world / "tower")} | model
    recipe = json.loads(json.dumps({"model": model | {"template": "vicuna"}, "tune": tune}))
    path = tiny.write_recipe(folder, tune=tune, optim={"lr": 0.01, "max_steps": 2})
    import yaml

    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    written |= recipe
    written["batch"]["max_length"] = 512
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    train(load_recipe(str(path), []), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_model_that_the_run_wrote(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    run = trained(world, tmp_path, case)
    if case not in DRAWN:
        monkeypatch.setattr(checkpoint, "restore", lambda *_, **__: pytest.fail("all of it was put into memory"))
    assert cli.main(["convert", str(run / "checkpoint-2"), str(tmp_path / "out")]) == 0
    assert contents(tmp_path / "out") == contents(run / "hf")
