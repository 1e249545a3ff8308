"""The Hugging Face export in transformers of several versions: every key, the same ids, logits and answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from comparing import OWN, difference, figure, ours, run_in, said_by
from conftest import PICTURES
from trained import QUESTION, our_answers

from sightline.model.load import load

World = Callable[[str], Path]
Exported = Callable[[str, str], Path]


def elsewhere(name: str, kind: str) -> object:
    return pytest.param(name, kind, marks=pytest.mark.clients)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (OWN, "pad"),
        (OWN, "next"),
        elsewhere("transformers-4_57", "pad"),
        elsewhere("transformers-4_57", "next"),
        elsewhere("transformers-4_48", "crop"),
        elsewhere("transformers-4_48", "next"),
    ],
)
def test_the_same_model(world: World, exported: Exported, tmp_path: Path, name: str, kind: str) -> None:
    pictures = [str(world(kind) / "pictures" / picture) for picture in PICTURES]
    asked = {"folder": str(exported(kind, "huggingface")), "pictures": pictures, "question": QUESTION}
    said = said_by(name, "run_transformers.py", asked, tmp_path)
    assert said["version"].startswith(name.removeprefix("transformers-").replace("_", "."))
    assert said["loading"] == {}
    family = "LlavaNext" if kind == "next" else "Llava"
    assert said["kinds"][:2] == [f"{family}ForConditionalGeneration", f"{family}Processor"]
    vlm = load(world(kind) / "run" / "hf", device="cpu", dtype="float32")
    answers = our_answers(world(kind) / "run", pictures)
    largest = 0.0
    for picture, theirs in said["found"].items():
        ids, logits = ours(vlm, picture)
        assert theirs["ids"] == ids
        assert (ids.count(vlm.prompter.image_token_id) > 2 * 16) == (kind == "next")  # whole, and in tiles
        largest = max(largest, difference(theirs["logits"], logits))
        assert theirs["answer"] == theirs["piped"] == answers[picture]
    for way, started in said["begun"].items():
        assert started[0] == said["bos"] and started.count(said["bos"]) == 1, way
    figure(f"transformers {said['version']}, huggingface ({kind})", largest, logits)
    assert largest < 1e-4
    assert len(set(answers.values())) == len(PICTURES)


@pytest.mark.clients
def test_before_4_49_padding_is_refused_not_left_out(world: World, exported: Exported, tmp_path: Path) -> None:
    """Its image processor was not written yet; the pictures' middle in its place would give other answers silently."""
    words = "import sys, transformers; transformers.AutoProcessor.from_pretrained(sys.argv[1])"
    done = run_in("transformers-4_48", "python", "-c", words, exported("pad", "huggingface"), cwd=tmp_path)
    assert done.returncode != 0 and "Unrecognized image processor" in done.stderr
