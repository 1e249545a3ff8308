"""A recipe -> the same recipe with small stand-ins: random models of the same families, a few made-up rows, 3 steps.

So a recipe can be tried in seconds, without weights, data or a network, on the way that the whole run takes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sightline.errors import CheckpointError
from sightline.files import is_own
from sightline.model.assemble import assemble, make_prompter
from sightline.model.estimate_models import blank_model, model_parts
from sightline.model.save import save
from sightline.model.tiny_parts import LAYERS, drawn, write_llm, write_tower
from sightline.model.tune import apply_tuning
from sightline.prompt.own_template import AUTO
from sightline.prompt.render import to_jinja
from sightline.prompt.templates import TEMPLATES
from sightline.recipe import DataRecipe, ModelRecipe, Recipe, TuneRecipe

STEPS, BATCH = 3, 4

MARK = ("stand-ins.txt", "Stand-ins of sightline train --tiny: made anew each time.\n")
"""By this a folder that may be written to again is told from a user's."""

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}


def tiny(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe on stand-ins, which are written to `folder`: the same ones each time.

    What learns and how, templates, rates, lengths and precision stay as they are. Raises ModelError for a model whose
    configuration is neither in its folder nor known by its name, CheckpointError where `folder` cannot be written, and
    what the whole run would raise for layers, names and grids that the real model does not have.
    """
    blank = blank_model(recipe.model)
    with torch.device("meta"):
        apply_tuning(blank.model, recipe.tune, recipe.optim)
    try:
        if not is_own(folder, *MARK):
            raise CheckpointError(f"{folder} holds something else than stand-ins; choose another --work-dir")
        model = _model(recipe, folder)
        data = tuple(_data(entry, folder / f"data_{number}", recipe) for number, entry in enumerate(recipe.data))
    except OSError as error:
        raise CheckpointError(f"cannot write stand-ins to {folder}: {error.strerror}") from error
    return recipe.model_copy(
        update={
            "model": model,
            "tune": _tune(recipe.tune),
            "data": data,
            "batch": recipe.batch.model_copy(update={"global_batch": BATCH, "workers": 0}),
            "optim": recipe.optim.model_copy(update={"max_steps": STEPS}),
            "run": recipe.run.model_copy(update={"save_every": 2}),
        }
    )


def _model(recipe: Recipe, folder: Path) -> ModelRecipe:
    spec = recipe.model
    llm, tower, grids = model_parts(spec)
    tokens = {token for name in _templates(recipe) for token in TEMPLATES[name].tokens}
    deep = abs(spec.vision_feature_layer) + 1
    parts = {
        "llm": str(write_llm(llm, sorted(tokens), recipe.batch.max_length, folder / "llm")),
        "vision_tower": str(write_tower(tower, folder / "vision_tower", layers=deep)),
    }
    if AUTO in (spec.template, *(entry.template for entry in recipe.data)):
        _write_chat_template(Path(parts["llm"]))
    whole = spec.model_copy(
        update=parts
        | {"from_model": None, "projector_from": None, "grid_pinpoints": None, "next": spec.next or grids is not None}
    )
    if spec.from_model is None and spec.projector_from is None:
        return whole
    # Stage 1 of this model stands in for the one that the recipe goes on from.
    before = folder / "before"
    save(drawn(lambda: assemble(whole, make_prompter(whole))), before, replace=True)
    if spec.from_model is None:
        return whole.model_copy(update={"projector_from": str(before)})
    kept = str(before) if spec.projector_from is not None else None
    return spec.model_copy(update={"from_model": str(before), "projector_from": kept, "grid_pinpoints": None})


def _templates(recipe: Recipe) -> set[str]:
    named = {recipe.model.template, *(entry.template for entry in recipe.data if entry.template)}
    return {"chatml" if name == AUTO else name for name in named}


def _write_chat_template(llm: Path) -> None:
    (llm / "chat_template.jinja").write_text(to_jinja(TEMPLATES["chatml"]), encoding="utf-8")


def _tune(tune: TuneRecipe) -> TuneRecipe:
    """The same, where it counts layers: of the few that there are."""
    fewer: dict[str, Any] = {}
    if tune.freeze_layers is not None:
        fewer["freeze_layers"] = min(tune.freeze_layers, LAYERS - 1)
    if tune.vision_last_n is not None:
        fewer["vision_last_n"] = 1
    return tune.model_copy(update=fewer)


def _data(entry: DataRecipe, folder: Path, recipe: Recipe) -> DataRecipe:
    """A set of the same form, template and share, in rows enough for all steps."""
    folder.mkdir(exist_ok=True)
    template = TEMPLATES.get(entry.template or recipe.model.template)
    captions = template is not None and template.images_only
    rng, rows = random.Random(0), []
    for number in range(STEPS * BATCH):
        colour = rng.choice(list(COLOURS))
        picture = f"{number}.{'png' if number % 2 else 'jpg'}"
        Image.new("RGB", (rng.choice((56, 80)), rng.choice((56, 72))), COLOURS[colour]).save(folder / picture)
        turns = [("<image>\nWhat colour is this?", f"It is {colour}.")]
        if number % 3 == 0 and not captions:
            turns.append(("Is it red?", "Yes." if colour == "red" else "No."))
        rows.append(_row(number, picture, turns, entry.form))
    file = folder / "rows.json"
    file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    changes = {"path": str(file), "images": str(folder), "use": None, "root": None, "head": None, "ratio": 1.0}
    return entry.model_copy(update=changes | {"form": "paddlemix" if entry.form == "paddlemix" else None})


def _row(number: int, picture: str, turns: list[tuple[str, str]], form: str | None) -> dict[str, Any]:
    if form == "paddlemix":
        return {"image": picture, "conversations": [list(turn) for turn in turns]}
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    return {"id": str(number), "image": picture, "conversations": said}
