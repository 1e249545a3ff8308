"""XTuner 0.2.0 chats with our export; what it has trained comes in, by its checkpoint and by the folder it exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trained
import yaml
from comparing import OWN, difference, figure, ours, run_in, said_by
from conftest import PICTURES
from trained import QUESTION, our_answers, sightline
from transformers import AutoModelForCausalLM

from sightline.model.load import load

pytestmark = pytest.mark.clients

World = Callable[[str], Path]
Exported = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def theirs(world: World, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`parts/` that XTuner has trained adapters for: `work/iter_3.pth`, and `out/` as it exports them."""
    folder = tmp_path_factory.mktemp("xtuner")
    shutil.copytree(exported("pad", "xtuner"), folder / "parts")
    settings = folder / "parts" / "tokenizer_config.json"
    kept = json.loads(settings.read_text(encoding="utf-8"))
    del kept["prompt_template"], kept["system_prompt"]  # that is ours; other people's models do not say it
    settings.write_text(json.dumps(kept), encoding="utf-8")
    shutil.copytree(world("pad") / "pictures", folder / "pictures")
    text = Path(__file__).with_name("xtuner_training.py").read_text(encoding="utf-8")
    (folder / "config.py").write_text(text.replace("HERE", str(folder)), encoding="utf-8")
    for words in (
        ["train", "config.py", "--work-dir", folder / "work"],
        ["convert", "pth_to_hf", "config.py", "work/iter_3.pth", "out", "--fp32"],
    ):
        done = run_in("xtuner", "xtuner", *words, cwd=folder)
        assert "command error" not in done.stderr, done.stderr[-3000:]  # it never fails otherwise
    assert {path.name for path in (folder / "out").iterdir()} == {
        *("llm_adapter", "visual_encoder_adapter", "projector", "xtuner_config.py"),
    }
    return folder


@pytest.fixture(scope="session")
def truth(theirs: Path) -> dict[str, Any]:
    """Logits by XTuner's own model."""
    asked = {
        "config": str(theirs / "config.py"),
        "checkpoint": str(theirs / "work" / "iter_3.pth"),
        "pictures": [str(theirs / "pictures" / picture) for picture in PICTURES],
        "prompt": f"USER: <image>\n{QUESTION} ASSISTANT:",
    }
    said = said_by("xtuner", "run_xtuner.py", asked, theirs)
    assert said["trained"] == 2 * 7 * 2 + 3 * 6 * 2 + 4  # adapters of all linear layers, and the projector
    return said


def compare(what: str, hub: Path, truth: dict[str, Any]) -> None:
    vlm = load(hub, device="cpu", dtype="float32")
    largest = 0.0
    for picture, said in truth["found"].items():
        _, logits = ours(vlm, picture)
        largest = max(largest, difference(said["logits"], logits))
    figure(what, largest, logits)
    assert largest < 1e-4


def test_its_folder_comes_in(theirs: Path, truth: dict[str, Any], tmp_path: Path) -> None:
    sightline("convert", theirs / "out", tmp_path / "hub", "--to", "huggingface")
    compare("XTuner 0.2.0, its exported folder", tmp_path / "hub", truth)


def test_its_checkpoint_comes_in(theirs: Path, truth: dict[str, Any], tmp_path: Path) -> None:
    parts = {"llm": str(theirs / "parts"), "vision_tower": str(theirs / "parts" / "visual_encoder")}
    recipe = {
        "model": {**parts, "template": "vicuna", "system": ""},
        "tune": {
            **{"llm": "lora", "llm_lora": {"r": 8, "alpha": 16}},
            **{"vision_tower": "lora", "vision_lora": {"r": 4, "alpha": 8}},
        },
        "data": [{"path": str(theirs / "pictures" / "data.json"), "images": str(theirs / "pictures")}],
        "batch": {"global_batch": 4, "max_length": 256},
        "optim": {"lr": 1e-3, "epochs": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    checkpoint = theirs / "work" / "iter_3.pth"
    sightline("convert", "pth_to_hf", tmp_path / "recipe.yaml", checkpoint, tmp_path / "hub", "--fp32")
    compare("XTuner 0.2.0, its iter_3.pth", tmp_path / "hub", truth)


def chat(llm: Path, picture: str, *flags: str | Path) -> str:
    """What XTuner's chat answers."""
    words = ["--prompt-template", "vicuna", "--torch-dtype", "fp32", "--temperature", "0", "--max-new-tokens", "20"]
    command = ["xtuner", "chat", llm, "--image", picture, *flags, *words]
    done = run_in("xtuner", *command, cwd=llm.parent, stdin=f"{QUESTION}\n\nEXIT\n\n")
    said = [line.rpartition(">>> ")[2] for line in done.stdout.splitlines() if "</s>" in line]
    assert len(said) == 1, done.stderr[-3000:]
    return said[0].removesuffix("</s>").strip()


def test_it_chats_with_our_export(world: World, exported: Exported) -> None:
    pictures = [str(world("pad") / "pictures" / picture) for picture in PICTURES[:2]]
    answers = our_answers(world("pad") / "run", pictures)
    folder = exported("pad", "xtuner")
    assert {picture: chat(folder, picture, "--llava", folder) for picture in pictures} == answers
    assert len(set(answers.values())) == len(pictures)


def test_it_chats_with_the_adapters_of_our_run(exported: Exported, tmp_path: Path) -> None:
    """Adapters on both parts of a model that XTuner can load: they have learned other words for the answers."""
    parts = exported("pad", "xtuner")
    tower = parts / "visual_encoder"
    run = trained.train(
        tmp_path,
        model={"llm": str(parts), "vision_tower": str(tower), "system": ""},
        tune={"llm": "lora", "llm_lora": {"r": 8, "alpha": 16}, "vision_tower": "lora", "vision_lora": {"r": 4}},
        answer="Only {}.",
    )
    sightline("convert", run / "learned", tmp_path / "apart", "--to", "xtuner", "--learned")
    picture = str(tmp_path / "pictures" / PICTURES[1])
    assert our_answers(run, [picture]) == {picture: "Only blue."}
    assert chat(parts, picture, "--llava", tmp_path / "apart", "--visual-encoder", tower) == "Only blue."


def test_peft_alone_makes_the_same_of_its_adapter(theirs: Path, tmp_path: Path) -> None:
    """The language model by itself: bare with the adapter in peft, and ours with the adapter merged."""
    sightline("convert", "merge", theirs / "parts", theirs / "out" / "llm_adapter", tmp_path / "merged")
    asked = {"llm": str(theirs / "parts"), "adapter": str(theirs / "out" / "llm_adapter"), "ids": [1, *range(300, 340)]}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    bare = AutoModelForCausalLM.from_pretrained(theirs / "parts", dtype=torch.float32)
    with torch.inference_mode():
        logits, before = (model(torch.tensor([asked["ids"]])).logits[0] for model in (merged, bare))
    for name in (OWN, "transformers-4_57"):
        said = said_by(name, "run_peft.py", asked, tmp_path)
        largest = difference(said["logits"], logits)
        figure(f"peft {said['version']}, llm_adapter of XTuner's", largest, logits)
        assert largest < 1e-4 < float((before - logits).abs().max())
