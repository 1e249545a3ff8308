"""The official export by the official loading rules, in the versions that the official LLaVA pins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from comparing import SYSTEM, difference, figure, ours, said_by
from conftest import PICTURES
from trained import QUESTION, our_answers

from sightline.model.load import load


@pytest.mark.clients
def test_the_same_model(world: Callable[[str], Path], exported: Callable[[str, str], Path], tmp_path: Path) -> None:
    pictures = [str(world("pad") / "pictures" / picture) for picture in PICTURES]
    prompt = f"{SYSTEM} USER: <image>\n{QUESTION} ASSISTANT:"
    asked = {"folder": str(exported("pad", "official")), "pictures": pictures, "prompt": prompt}
    said = said_by("official-llava", "run_official.py", asked, tmp_path)
    assert said["version"] == "4.37.2" and said["kinds"] == ["LlamaTokenizer"]
    assert said["loading"] == {}
    assert said["tokens"] == said["rows"]  # else the official code adds random rows
    vlm = load(world("pad") / "run" / "hf", device="cpu", dtype="float32")
    answers = our_answers(world("pad") / "run", pictures)
    largest = 0.0
    for picture, theirs in said["found"].items():
        ids, logits = ours(vlm, picture)
        before, after = theirs["ids"]
        assert [*before, *[vlm.prompter.image_token_id] * 16, *after] == ids
        largest = max(largest, difference(theirs["logits"], logits))
        assert theirs["answer"] == answers[picture]
    figure("official loading rules, transformers 4.37.2", largest, logits)
    assert largest < 1e-4


@pytest.mark.clients
def test_a_next_loads(world: Callable[[str], Path], exported: Callable[[str, str], Path], tmp_path: Path) -> None:
    """All of its tensors have their places: the tower in the weights, and what ends a row of tiles."""
    asked = {"folder": str(exported("next", "official")), "pictures": [], "prompt": ""}
    said = said_by("official-llava", "run_official.py", asked, tmp_path)
    assert said["loading"] == {} and said["tokens"] == said["rows"]
