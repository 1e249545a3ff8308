"""Model folders of strangers that bring code: no command runs it, asks whether to, or copies it anywhere."""

from __future__ import annotations

import ast
import builtins
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import HF_MODULES_CACHE

from sightline.cli import main
from sightline.recipe import load_recipe
from sightline.train.loop import train

ROOT = Path(__file__).parents[2]

EVIL = """\
from pathlib import Path
Path({marker!r}).touch()
from transformers import CLIPImageProcessor, LlamaConfig, PreTrainedTokenizerFast
class EvilImg(CLIPImageProcessor): pass
class EvilConfig(LlamaConfig): model_type = "evil"
class EvilTokenizer(PreTrainedTokenizerFast): pass
"""


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **values}))


def with_processor(folder: Path) -> None:
    change(
        folder / "preprocessor_config.json",
        image_processor_type="EvilImg",
        auto_map={"AutoImageProcessor": "evil.EvilImg"},
    )


def with_config(folder: Path) -> None:
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})


def with_tokenizer(folder: Path) -> None:
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    )


KINDS: dict[str, Callable[[Path], None]] = {
    "processor": with_processor,
    "config": with_config,
    "tokenizer": with_tokenizer,
}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that foreign code would make; whoever asks whether to run it is told yes."""
    asked: list[str] = []

    def answer(question: str = "") -> str:
        asked.append(question)
        if "custom code" in question:
            return "1"
        raise EOFError  # chat's own: there is nothing more to say

    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n"))
    before = sorted(Path(HF_MODULES_CACHE).rglob("*evil*"))
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists(), "foreign code has run"
    assert not any("custom code" in question for question in asked), "it was asked whether to run code"
    assert sorted(Path(HF_MODULES_CACHE).rglob("*evil*")) == before, "foreign code was copied"


def evil(source: Path, target: Path, kind: str, marker: Path) -> Path:
    shutil.copytree(source, target)
    (target / "evil.py").write_text(EVIL.format(marker=str(marker)))
    KINDS[kind](target)
    return target


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends in; nothing where it does its work."""
    code = main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) in ((0, 0), (2, 1)), (code, lines)
    assert "trust_remote_code" not in "".join(lines), "advice that no command can follow"
    return "".join(lines)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["chat", "data check", "plan", "train", "eval-answers", "convert"])
def test_code_of_a_whole_model(
    command: str, kind: str, world: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = evil(world / "run" / "hf", tmp_path / "model", kind, marker)
    whole = [f"model.from_model={model}", "model.llm=null", "model.vision_tower=null"]
    recipe, data, images = (str(world / name) for name in ("recipe.yaml", "world/data.json", "world/images"))
    arguments = {
        "chat": ["chat", str(model), "--device", "cpu"],
        "data check": ["data", "check", data, "--images", images, "--tokenizer", str(model)],
        "plan": ["plan", recipe, *whole],
        "train": ["train", recipe, *whole, "--work-dir", str(tmp_path / "work")],
        "eval-answers": ["eval-answers", str(model), "--data-path", data, "--image-folder", images],
        "convert": ["convert", str(model), str(tmp_path / "out"), "--to", "official"],
    }[command]
    line = said(arguments, capsys)
    if kind == "config" or (kind == "processor" and command not in ("plan", "eval-answers")):
        assert "needs code of its own" in line


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
@pytest.mark.parametrize("command", ["assemble", "llamafy", "merge", "train"])
def test_code_of_a_language_model(
    command: str, kind: str, world: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm, tower, out = evil(world / "llm", tmp_path / "llm", kind, marker), str(world / "tower"), str(tmp_path / "out")
    (tmp_path / "adapter").mkdir()
    change(tmp_path / "adapter" / "adapter_config.json", peft_type="LORA", lora_alpha=8, r=4)
    arguments = {
        "assemble": ["assemble", "--llm", str(llm), "--vision-tower", tower, "--out", out],
        "llamafy": ["llamafy", str(llm), out],
        "merge": ["convert", "merge", str(llm), str(tmp_path / "adapter"), out],
        "train": ["train", str(world / "recipe.yaml"), f"model.llm={llm}", "--work-dir", out],
    }[command]
    line = said(arguments, capsys)
    assert kind == "tokenizer" or "code of its own" in line or "llamafy" in command


@pytest.mark.parametrize("kind", ["config", "processor"])
def test_code_of_a_vision_tower(
    kind: str, world: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = evil(world / "tower", tmp_path / "tower", kind, marker)
    arguments = ["assemble", "--llm", str(world / "llm"), "--vision-tower", str(tower), "--out", str(tmp_path / "out")]
    assert "needs code of its own" in said(arguments, capsys)


def test_code_beside_a_model_that_transformers_knows_is_left_alone(world: Path, tmp_path: Path, marker: Path) -> None:
    """Phi-3 and many others come with code that is older than their class in transformers."""
    llm = tmp_path / "llm"
    shutil.copytree(world / "llm", llm)
    (llm / "evil.py").write_text(EVIL.format(marker=str(marker)))
    change(llm / "config.json", auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"})
    recipe = load_recipe(str(world / "recipe.yaml"), [f"model.llm={llm}", "optim.max_steps=1"])
    assert (train(recipe, tmp_path / "run") / "config.json").is_file()


def calls(source: str) -> Iterator[tuple[int, bool]]:
    """Every `from_pretrained` of something that is loaded: its line, and whether it refuses foreign code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            given = {word.arg: word.value for word in node.keywords}
            value = given.get("trust_remote_code")
            yield node.lineno, isinstance(value, ast.Constant) and value.value is False


def test_every_call_refuses_foreign_code() -> None:
    files = sorted((ROOT / "src").rglob("*.py"))
    found = {(file.name, line): refuses for file in files for line, refuses in calls(file.read_text())}
    assert len(found) >= 9, "the walk finds them"
    assert [place for place, refuses in found.items() if not refuses] == []
    assert [refuses for _, refuses in calls("AutoConfig.from_pretrained(name)")] == [False], "it can fail"
