"""Who imports whom, function-level imports included; what must not be imported at all; the size of files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sightline"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors"},
    {"types", "files"},
    {"recipe", "runtime"},
    {"prompt"},
    {"page"},
    {"data", "model"},
    {"train", "convert", "evaluate", "serve", "chat"},
    {"cli", "demo"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
MEMBER_OF = {
    "devices": "runtime",
    "connections": "prompt",
    "limits": "recipe",
    "child": "runtime",
    "network": "prompt",
    "pattern_tree": "types",
    "patterns": "types",
    "pointers": "types",
    "recipes": "recipe",
    "recipe_errors": "recipe",
    "recipe_sections": "recipe",
    "recipe_commands": "cli",
    "terminal": "types",
    "unpickler": "prompt",
    "data_commands": "cli",
    "__main__": "cli",
}
"""Modules beside the packages that belong to one of them."""


def part_of(module: str) -> str:
    """`sightline.data.plan` -> data; the package itself, which holds only its version, -> empty."""
    name = module.split(".")[1] if "." in module else ""
    return MEMBER_OF.get(name, name)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every module that the source imports; `from sightline import recipe` is sightline.recipe."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written out in full"
            if node.module == "sightline":
                yield from ((node.lineno, f"sightline.{a.name}") for a in node.names if a.name != "__version__")
            else:
                yield node.lineno, str(node.module)


def forbidden(path: Path, source: str) -> list[str]:
    """The imports of a file that do not go downward."""
    here = part_of(module_name(path))
    found = []
    for line, name in imports(source):
        there = part_of(name)
        if name.split(".")[0] == "sightline" and there and there != here and LEVEL[there] >= LEVEL[here]:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


def test_every_part_has_a_layer() -> None:
    assert {part_of(module_name(path)) for path in MODULES} - {""} <= set(LEVEL)


def test_imports_go_downward() -> None:
    assert [line for path in MODULES for line in forbidden(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("file", "source", "is_forbidden"),
    [
        ("data/plan.py", "from sightline.model.tune import x", True),
        ("data/plan.py", "def f():\n    import sightline.train.loop", True),
        ("train/loop.py", "from sightline.evaluate.run import x", True),
        ("recipe.py", "from sightline import runtime", True),
        ("train/loop.py", "from sightline import recipe, __version__", False),
        ("train/loop.py", "from sightline.train.loss import x", False),
        ("recipe.py", "from sightline.recipes import x", False),
        ("cli.py", "import sightline.train.command", False),
    ],
)
def test_the_rule_itself(file: str, source: str, is_forbidden: bool) -> None:
    assert bool(forbidden(PACKAGE / file, source)) is is_forbidden


def test_only_runtime_reads_the_environment() -> None:
    def reads(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text()))
        return any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in nodes)

    assert [str(path.relative_to(ROOT)) for path in MODULES if reads(path)] == ["src/sightline/runtime.py"]


def test_no_file_over_320_lines() -> None:
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 320} == {}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sightline.types, sightline.errors, sightline.recipe", {"torch", "transformers"}),
        ("import sightline.cli; sightline.cli.main(['--help'])", {"torch", "transformers", "pydantic", "yaml"}),
        ("import sightline.cli; sightline.cli.main(['recipe', 'check', 'llava_v15_7b_pretrain'])", {"torch"}),
        ("import sightline.cli; sightline.cli.main(['list-cfg'])", {"torch", "pydantic"}),
        (
            "import contextlib, sightline.cli\nfor name in sightline.cli.COMMANDS:\n"
            " with contextlib.suppress(SystemExit): sightline.cli.main([*name.split(), '--help'])",
            {"torch", "transformers", "pandas", "fastapi"},
        ),
    ],
)
def test_light_imports_stay_light(statement: str, absent: set[str]) -> None:
    command = [sys.executable, "-c", f"{statement}\nimport sys; print('MODULES', *sys.modules)"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded = set(printed.splitlines()[-1].split()[1:])
    assert "sightline.errors" in loaded
    assert loaded & absent == set()
