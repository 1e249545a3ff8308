"""From a recipe's name or path to plain data: shipped recipes, strict YAML, one `base:`, `a.b=c` on top."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from sightline.errors import RecipeError, shown

COMMAND_LINE = "command line"
"""Where a value comes from that was given as `a.b=c`; other values come from a file."""

KeyPath = tuple[str | int, ...]
"""A dotted key in pieces: ("data", 0, "path") is `data.0.path`."""


class _Loader(yaml.SafeLoader):
    """YAML of what JSON can say, in which 1e-3 is a number and a date is a text."""


_FLOAT = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] not in ("binary", "omap", "pairs", "set", "timestamp")
}

LARGEST = 256 * 1024
"""Bytes; YAML is read at some 100 KB a second, and a recipe of a hundred sets of data has 20 KB."""

MANY_VALUES = 100_000
"""A file with more is no recipe: aliases of aliases unfold to any number of values."""


MANY_TWICE = 20
"""Keys that are there twice, and are told."""


class _Dumper(yaml.SafeDumper):
    """Quotes also what only our loader takes for a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_value(text: str) -> Any:
    """The value of an `a.b=c` override as YAML reads it; ValueError if it does not."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise ValueError(f"{shown(text)} is not YAML") from error


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside an installed package, beside it in a working tree."""
    packed = Path(__file__).parent / "_recipes"
    return packed if packed.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped() -> dict[str, Path]:
    """The recipes that can be named, by name."""
    return {path.stem: path for path in sorted(recipe_folder().rglob("*.yaml")) if path.parent.name != "base"}


def bases() -> dict[str, Path]:
    """The incomplete recipes that only others build on, by name."""
    return {path.stem: path for path in sorted((recipe_folder() / "base").glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe, or a path as it is; RecipeError for an unknown name."""
    known = shipped()
    if told := _of_others(Path(name_or_path), known):
        raise RecipeError(f"{name_or_path}: {told}")
    if is_path(name_or_path):
        return Path(name_or_path)
    if name_or_path in known:
        return known[name_or_path]
    near = difflib.get_close_matches(name_or_path, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RecipeError(f"{name_or_path}: no recipe of this name; {hint}`sightline list-cfg` shows all names")


PADDLEMIX = {"pretrain": "pretrain", "sft_argument": "sft", "lora_sft_argument": "lora_sft"}
"""How its configurations are called, and the recipes here that have their values."""


def _of_others(path: Path, known: Iterable[str]) -> str | None:
    """What to say of a configuration of another program; None for what may be a recipe."""
    if path.suffix == ".py":
        name = path.stem.removesuffix("_copy")
        near = [name] if name in known else difflib.get_close_matches(name, known, n=2)
        ours = f"the recipe here is {' or '.join(near)}" if near else "`sightline list-cfg` lists the recipes here"
        return f"a configuration of XTuner's, which is a program and is not run; {ours}"
    if path.suffix == ".json":
        kind = next((PADDLEMIX[part] for part in sorted(PADDLEMIX, key=len)[::-1] if path.stem.startswith(part)), "sft")
        return (
            f"a configuration of PaddleMIX's, if it is one at all; the recipes with its values are "
            f"paddlemix_llava_v1_5_{kind} and paddlemix_llava_v1_6_{kind}"
        )
    return None


def read_recipe(name_or_path: str) -> tuple[dict[str, Any], dict[KeyPath, str], list[str]]:
    """A recipe with its base merged in: the data, the file of each of its values, what is wrong so far.

    The files have the recipe itself under the empty path.
    Raises RecipeError when a file cannot be read at all.
    """
    path = find_recipe(name_or_path)
    label = str(path) if is_path(name_or_path) else path.name
    data, problems = read_yaml(path, label)
    base = data.pop("base", None)
    files = dict.fromkeys(dict(flatten(data)), label) | {(): label}
    if base is None:
        return data, files, problems
    if not isinstance(base, str):
        raise RecipeError("\n".join([*problems, f"{label}: base: must be a name or a path, not {shown(base)}"]))
    base_path, base_label = _find_base(base, path, label)
    base_data, base_problems = read_yaml(base_path, base_label)
    if "base" in base_data:
        remedy = "copy it and change the copy (sightline copy-cfg)"
        base_problems.append(f"{base_label}: base: a base has none of its own, so {label} cannot build on it; {remedy}")
        del base_data["base"]
    merged = merge(base_data, data)
    written = {path: files.get(path, base_label) for path in ((), *dict(flatten(merged)))}
    return merged, written, base_problems + problems


def is_path(name_or_path: str) -> bool:
    """Whether a recipe is named by its file, not by its name."""
    return Path(name_or_path).suffix in (".yaml", ".yml") or "/" in name_or_path or "\\" in name_or_path


def _find_base(base: str, path: Path, label: str) -> tuple[Path, str]:
    if is_path(base):
        return path.parent / base, str(path.parent / base)
    known = bases() | shipped()
    if base in known:
        return known[base], known[base].name
    near = difflib.get_close_matches(base, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "a path must end in .yaml"
    raise RecipeError(f"{label}: base: no shipped recipe is called {shown(base)}; {hint}")


def read_yaml(path: Path, label: str) -> tuple[dict[str, Any], list[str]]:
    """A YAML file as a mapping, and its duplicate keys as lines of text.

    Raises RecipeError when it cannot be read, is no YAML or no mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError(f"{label}: is no recipe: it has more than {LARGEST // 1024} KB")
        text = content.decode("utf-8")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else {}
            if any(number >= MANY_VALUES for number, _ in enumerate(flatten(data))):
                raise RecipeError(f"{label}: has more than {MANY_VALUES:,} values, or its aliases unfold to that many")
            duplicates = list(islice(_duplicates(node), MANY_TWICE)) if node is not None else []
        finally:
            loader.dispose()
    except OSError as error:
        raise RecipeError(f"{label}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{label}: is not a text in UTF-8 (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(f"{label}: {where}is not YAML: {_short(error.problem)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{label}: is not YAML: {_short(error)}") from error
    except (ValueError, LookupError) as error:  # a tag that its value does not fit: !!int many
        raise RecipeError(f"{label}: is not YAML: {_short(error)}") from error
    except RecursionError as error:
        raise RecipeError(f"{label}: is nested too deeply, or an alias contains itself") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{label}: must be a mapping of sections (model, tune, data, ...)")
    return data, [f"{label}: {problem}" for problem in duplicates]


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:200]


def _duplicates(node: yaml.Node, path: KeyPath = ()) -> Iterator[str]:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicates(item, (*path, index))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                yield f"{_short(dotted((*path, name)))}: is there twice, in lines {seen[name]} and {line}"
            seen[name] = line
            yield from _duplicates(value, (*path, name))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge deep, lists and scalars replace, null removes a mapping."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        elif isinstance(old, Mapping) and value is None:
            del merged[key]
        else:
            merged[key] = value
    return merged


def flatten(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every scalar (or empty mapping or list) of nested data with its path."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from flatten(value, (*path, key))
    elif isinstance(data, list | tuple) and data:
        for index, value in enumerate(data):
            yield from flatten(value, (*path, index))
    else:
        yield path, data


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
