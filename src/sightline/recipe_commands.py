"""The commands around recipes: list, copy, show, check, schema."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import RecipeError, UserError
from sightline.files import write_whole
from sightline.recipes import find_recipe, is_path, read_yaml, shipped

if TYPE_CHECKING:
    from sightline.recipe import Recipe

COUNTED = 64 << 20
"""Bytes of a file whose rows are counted by `recipe check`; `train` and `data check` count all."""


def arguments_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--pattern", help="only names that contain this, in upper or lower case")


def run_list(args: argparse.Namespace) -> None:
    """List the names of the shipped recipes."""
    print("CONFIGS".center(60, "="))
    if args.pattern is not None:
        print(f"PATTERN: {args.pattern}")
        print("-" * 60)
    for name in sorted(shipped()):
        if args.pattern is None or args.pattern.lower() in name.lower():
            print(name)
    print("=" * 60)


def arguments_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a shipped recipe's name, or a file")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the copy goes, as <NAME>_copy.yaml")


def run_copy(args: argparse.Namespace) -> None:
    """Copy a recipe into a folder, to change it there; its base stays where it is."""
    source = find_recipe(args.name)
    target = args.folder / f"{source.stem}_copy.yaml"
    base = read_yaml(source, str(source))[0].get("base")
    try:
        text = source.read_text(encoding="utf-8")
        if isinstance(base, str) and is_path(base):
            moved = json.dumps(str((source.parent / base).resolve()))
            text = re.sub(r"(?m)^base:.*$", lambda _: f"base: {moved}", text, count=1)
        args.folder.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    except FileExistsError as error:
        raise UserError(f"{error.filename or target}: is there already; nothing was copied") from error
    except OSError as error:
        raise UserError(f"{error.filename or source}: {error.strerror}; nothing was copied") from error
    print(f"Copy to {target}")


def arguments_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe's name, or a file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change, such as optim.lr=1e-4")


def run_show(args: argparse.Namespace) -> None:
    """Print a recipe as a run would use it: base merged, overrides applied, defaults filled in."""
    from sightline.recipe import dump_recipe, load_recipe

    print(dump_recipe(load_recipe(args.recipe, args.overrides)), end="")


def arguments_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="recipe files, or names of shipped recipes")


def run_check(args: argparse.Namespace) -> None:
    """Check recipes and name all errors of all of them; the exit code is 2 if there are any."""
    from sightline.data.layouts import check_names
    from sightline.recipe import load_recipe
    from sightline.train.beforehand import remarks

    problems = []
    for file in args.files:
        try:
            recipe = load_recipe(file)
        except RecipeError as error:
            problems.append(str(error))
            continue
        try:
            check_names(recipe.data)
            print(f"{file}: ok")
            for line in remarks(recipe, _rows(recipe)):
                print(f"  {line}")
        except UserError as error:
            problems += [f"{file}: {line}" for line in str(error).split("\n")]
    if problems:
        raise RecipeError("\n".join(problems))


def _rows(recipe: Recipe) -> int | None:
    """How many rows an epoch has, where its files are at hand and small enough to be counted in a moment."""
    from sightline.data.meta import is_meta
    from sightline.data.sources import open_rows

    count = 0.0
    for entry in recipe.data:
        if entry.path is None or not Path(entry.path).is_file() or Path(entry.path).stat().st_size > COUNTED:
            return None
        try:
            if is_meta(entry.path):
                return None
            rows = len(open_rows(entry.path))
        except UserError:  # `data check` tells it
            return None
        count += min(rows, entry.head or rows) * entry.ratio * entry.repeat
    return round(count)


def arguments_schema(parser: argparse.ArgumentParser) -> None:
    pass


def run_schema(args: argparse.Namespace) -> None:
    """Print the JSON Schema of a recipe file.

    Editors with YAML support complete keys by it: put `# yaml-language-server: $schema=recipe.schema.json` on top of
    a recipe and write this command's output into that file.
    """
    from sightline.recipe import Recipe

    schema = _without_required(Recipe.model_json_schema())
    base = {"type": "string", "description": "A recipe to build on: a shipped name, or a path relative to this file."}
    schema["properties"] = {"base": base} | schema["properties"]
    print(json.dumps(schema, indent=2))


def _without_required(schema: Any) -> Any:
    """The same without lists of required keys, since a base may provide them."""
    if isinstance(schema, dict):
        return {key: _without_required(value) for key, value in schema.items() if key != "required"}
    return [_without_required(item) for item in schema] if isinstance(schema, list) else schema
