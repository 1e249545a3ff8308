"""Nothing is replaced or removed that is not ours: only a few places write, rename or remove by themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "sightline"

CAREFUL = {
    "files.py": "the one place that knows how",
    "cli.py": "opens /dev/null",
}
HALF = "writes into a folder that `appearing` gave it, which is nobody else's"
OWN = "writes into a folder that bears a mark of ours"
RUN = "holds the run's folder, which has a list of what the run has written"
SEEN = "looks first whether what is there is one of ours"
CACHE = "in the cache, which is ours alone"
MEMORY = "into memory"
PLACES: dict[str, tuple[set[str], str]] = {
    "convert/gguf.py": ({"write_text"}, HALF),
    "convert/hf.py": ({"save_pretrained"}, HALF),
    "convert/merge.py": ({"copy"}, HALF),
    "convert/official.py": ({"save_pretrained"}, HALF),
    "convert/sentencepiece_file.py": ({"copyfile"}, HALF),
    "convert/shards.py": ({"open", "write_text"}, HALF),
    "convert/verify.py": ({"save"}, MEMORY),
    "convert/vocabulary.py": ({"write_text"}, HALF),
    "data/checked.py": ({"replace=True"}, SEEN),
    "data/fetch.py": (
        {"unlink", "open_own", "truncate", "replace=True"},
        "NAME.part and its note: they must be found again, and are not followed where they are links",
    ),
    "data/image_files.py": ({"unlink"}, "what it has fetched itself, and is no image"),
    "data/journal.py": (
        {"unlink", "truncate", "open_own", "replace=True"},
        "holds the log; rows of an output that was there are in the new one",
    ),
    "data/pairs.py": ({"save"}, MEMORY),
    "data/prepare.py": ({"unlink", "symlink"}, "an archive that it has just fetched; a link where there is nothing"),
    "data/stored.py": ({"save", "replace=True"}, CACHE),
    "data/surveyed.py": ({"replace=True"}, CACHE),
    "data/unpack.py": ({"rename", "rmtree", "open_own"}, f"{OWN}; a whole folder takes a name that is free"),
    "demo/backbones.py": ({"write_text", "replace=True"}, f"{HALF}, in one that bears a mark of ours"),
    "demo/folder.py": ({"rmtree"}, f"{OWN}, and removes what an earlier demo left"),
    "demo/language.py": ({"save_pretrained"}, HALF),
    "demo/tower.py": ({"save_pretrained"}, HALF),
    "demo/world.py": ({"write_text", "open", "save"}, OWN),
    "evaluate/answers.py": ({"save"}, MEMORY),
    "evaluate/run.py": ({"truncate"}, "half a line of its answers, which it holds"),
    "evaluate/save.py": ({"replace=True"}, "in a folder that was made for these results"),
    "model/llama_tokenizer.py": ({"copyfile", "save_pretrained"}, HALF),
    "model/llamafy.py": ({"write_text", "rename", "save_file"}, HALF),
    "model/save.py": (
        {"write_text", "copyfile", "save_file", "save_pretrained", "replace=True"},
        f"{HALF}; what it replaces its caller knows",
    ),
    "model/tiny.py": ({"write_text", "save", "replace=True"}, OWN),
    "model/tiny_parts.py": ({"save_pretrained"}, OWN),
    "page/page.py": ({"replace=True"}, SEEN),
    "page/pictures.py": ({"save"}, MEMORY),
    "train/checkpoint.py": (
        {"write_text", "open", "save", "save_file", "copyfile", "link", "rmtree", "replace=True"},
        f"{HALF}; {RUN}, and replaces and removes only what holds a state.json",
    ),
    "train/command.py": ({"replace=True"}, "the recipe of stand-ins, in a folder that bears a mark of ours"),
    "train/folder.py": ({"unlink", "rmdir", "truncate", "replace=True"}, RUN),
    "train/loop.py": ({"replace=True"}, RUN),
    "train/metrics.py": ({"open_own", "replace=True"}, RUN),
}
"""File -> what it does by itself, and why that may be."""

WRITING = {
    *("write_text", "write_bytes", "rename", "renames", "rmtree", "unlink", "remove", "rmdir", "truncate", "symlink"),
    *("symlink_to", "link", "hardlink_to", "touch", "copy", "copy2", "copyfile", "copytree", "move", "mkstemp"),
    *("save", "save_file", "save_pretrained", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory"),
}
OTHERS_TOO = {"copy", "remove", "link", "move"}
"""Lists, mappings and texts have methods of these names."""

MODULES = {"os", "shutil"}


def writes(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call that may write, replace or remove something on the disk."""
    for call in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]:
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        values = [*call.args[:2], *(keyword.value for keyword in call.keywords)]
        modes = [str(n.value) for value in values for n in ast.walk(value) if isinstance(n, ast.Constant)]
        of_module = any(_of(function, module) for module in MODULES)
        replaces = [k for k in call.keywords if k.arg == "replace" and getattr(k.value, "value", True) is not False]
        if name in ("open", "fdopen", "open_own") and any(len(mode) < 4 and set(mode) & set("wax+") for mode in modes):
            yield call.lineno, name
        elif isinstance(function, ast.Name) and replaces:
            yield call.lineno, "replace=True"
        elif isinstance(function, ast.Attribute) and name == "replace":
            if of_module or (len(call.args) == 1 and not call.keywords):
                yield call.lineno, name
        elif isinstance(function, ast.Name) and name in ("rename", "save"):
            continue  # functions of ours
        elif name in WRITING and (of_module or name not in OTHERS_TOO):
            yield call.lineno, name


def _of(function: ast.expr, module: str) -> bool:
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == module


def test_only_these_places_write() -> None:
    found: dict[str, set[str]] = {}
    lines: dict[tuple[str, str], int] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        if file not in CAREFUL:
            for line, name in writes(path.read_text(encoding="utf-8")):
                found.setdefault(file, set()).add(name)
                lines[file, name] = line
    allowed = {file: names for file, (names, _) in PLACES.items()}
    new = [f"{file}:{lines[file, name]} {name}" for file in found for name in found[file] - allowed.get(file, set())]
    assert new == [], "write by sightline.files, or say in this table why it may be done otherwise"
    gone = {file: names - found.get(file, set()) for file, names in allowed.items()}
    assert {file: names for file, names in gone.items() if names} == {}, "no longer needed in the table"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('open(x, "w")', "open"),
        ('path.open("ab")', "open"),
        ('path.open(mode="x")', "open"),
        ('path.open("rb")', None),
        ('path.write_text("")', "write_text"),
        ("os.replace(a, b)", "replace"),
        ("draft.replace(path)", "replace"),
        ('text.replace("a", "b")', None),
        ("dataclasses.replace(one, a=1)", None),
        ("rename(name, table)", None),
        ("path.rename(other)", "rename"),
        ("shutil.rmtree(path)", "rmtree"),
        ("path.unlink()", "unlink"),
        ("shutil.copy(a, b)", "copy"),
        ("config.copy()", None),
    ],
)
def test_the_rule_itself(source: str, name: str | None) -> None:
    assert [found for _, found in writes(source)] == ([] if name is None else [name])
