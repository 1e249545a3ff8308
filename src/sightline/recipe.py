"""What a user writes, checked: a YAML file and `a.b=c` overrides become a frozen `Recipe`, or all errors at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import Field, ValidationError

from sightline.errors import RecipeError
from sightline.limits import Limits
from sightline.recipe_errors import explain, is_text, key_types, unknown_key
from sightline.recipe_sections import (
    TEMPLATES,
    BatchRecipe,
    DataRecipe,
    EngineRecipe,
    LoraRecipe,
    ModelRecipe,
    OptimRecipe,
    RunRecipe,
    Section,
    TuneRecipe,
)
from sightline.recipes import COMMAND_LINE, KeyPath, dotted, dump_yaml, flatten, parse_value, read_recipe

__all__ = [
    "TEMPLATES",
    "BatchRecipe",
    "DataRecipe",
    "EngineRecipe",
    "LoraRecipe",
    "ModelRecipe",
    "OptimRecipe",
    "Recipe",
    "RunRecipe",
    "TuneRecipe",
    "differences",
    "dump_recipe",
    "load_recipe",
]


class Recipe(Section):
    """A training run of Sightline."""

    model: ModelRecipe
    tune: TuneRecipe = TuneRecipe()
    data: tuple[DataRecipe, ...] = Field(min_length=1)
    """The sets of data that are mixed."""
    batch: BatchRecipe
    optim: OptimRecipe
    engine: EngineRecipe = EngineRecipe()
    run: RunRecipe = RunRecipe()
    limits: Limits = Limits()
    """How much is taken from the files that the recipe names, where that is more than usual."""

    def identity(self) -> dict[str, Any]:
        """Everything that determines the loss curve, as plain JSON data."""
        plain = self.model_dump(mode="json")
        batch = {key: value for key, value in plain["batch"].items() if key not in ("pack_tokens", "workers")}
        # Absent where they are as they were before there was such a thing: runs from then go on.
        if plain["model"].get("image_place") == "kept":
            del plain["model"]["image_place"]
        pure = {"pure_bf16": True} if self.engine.pure_bf16 else {}
        rest = {"batch": batch, "engine": {"dtype": self.engine.dtype} | pure, "run": {"seed": self.run.seed}}
        return {key: plain[key] for key in ("model", "tune", "data", "optim")} | rest


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a file by path, with `a.b=c` overrides typed by the field.

    Raises RecipeError with a line for everything that is wrong with it.
    """
    data, files, problems = read_recipe(name_or_path)
    keys = key_types(Recipe)
    for override in overrides:
        try:
            files[_override(data, override, keys)] = COMMAND_LINE
        except ValueError as error:
            problems.append(f"{COMMAND_LINE}: {error}")
    try:
        # As JSON, because strict JSON is what YAML means: a list may become a tuple, "3" never becomes 3.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems += explain(error, keys, files)
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    return recipe


def _override(data: dict[str, Any], override: str, keys: Mapping[KeyPath, Any]) -> KeyPath:
    """Write one `a.b=c` into the data and return its path; ValueError when it does not fit."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"{override}: write key=value")
    path: KeyPath = tuple(int(piece) if piece.isdecimal() else piece for piece in key.strip().split("."))
    schema_path = tuple("*" if isinstance(piece, int) else piece for piece in path)
    if schema_path not in keys:
        raise ValueError(unknown_key(path, keys))
    inner: Any = data
    for piece, below in pairwise(path):
        if isinstance(piece, str) and isinstance(inner, dict) and inner.get(piece) is None:
            inner[piece] = [] if isinstance(below, int) else {}
        inner = _item(inner, piece, key)
    if not isinstance(inner, dict):
        _item(inner, path[-1], key)
    inner[path[-1]] = text if is_text(keys[schema_path], text) else parse_value(text)
    return path


def _item(container: Any, piece: Any, key: str) -> Any:
    if isinstance(piece, int) and isinstance(container, list) and piece >= len(container):
        raise ValueError(f"{key}: there is no entry {piece}; they are counted from 0, and there are {len(container)}")
    if not isinstance(container, list if isinstance(piece, int) else dict):
        raise ValueError(f"{key}: the recipe has no {'list' if isinstance(piece, int) else 'section'} here")
    return container[piece]


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back."""
    return dump_yaml(recipe.model_dump(mode="json"))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """A line for each value in which two identities differ: `a` the checkpoint's, `b` the present one.

    What becomes of bad rows may differ: whether they leave another set of samples is seen from the data themselves.
    """
    then, now = dict(flatten(a)), dict(flatten(b))
    differing = [p for p in {**then, **now} if then.get(p) != now.get(p) and p[-1] != "on_bad_row"]
    return [f"{dotted(p)}: {_shown(then.get(p))} in the checkpoint, {_shown(now.get(p))} now" for p in differing]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
