"""Answers that share the beginning of their prompt, against those given one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from sightline.model import batched
from sightline.model.assemble import assemble, make_prompter
from sightline.model.batched import replies
from sightline.model.load import VLM
from sightline.prompt.templates import TEMPLATES
from sightline.recipe import ModelRecipe
from sightline.types import ImageRef, Message, ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batched")
    tiny.make_tower(folder / "tower")
    tiny.make_llm(folder / "llm", kind="byte", extra=TEMPLATES["vicuna"].tokens)
    for colour, value in tiny.COLOURS.items():
        Image.new("RGB", (60, 56), value).save(folder / f"{colour}.png")
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["llava", "next"])
def vlm(folder: Path, request: pytest.FixtureRequest) -> VLM:
    spec = ModelRecipe(llm=str(folder / "llm"), vision_tower=str(folder / "tower"), next=request.param)
    torch.manual_seed(1)
    return assemble(spec, make_prompter(spec))


def questions(folder: Path) -> list[list[Message]]:
    def about(*colours: str) -> list[ImageRef]:
        return [ImageRef(str(folder / f"{colour}.png")) for colour in colours]

    return [
        [ask("What?\nA. red\nB. blue", about("red"))],
        [ask("A text without a picture")],
        [ask("What?\nA. blue\nB. red, or something quite different", about("red"))],
        [ask("Two pictures: what?", about("red", "blue"))],
        [ask("What?", about("red"))],
        [ask("Two pictures: where?", about("red", "blue"))],
        [ask("A lonely picture", about("green"))],
        [ask("What?\nA. red\nB. blue", about("red"))],
    ]


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_they_answer_as_each_alone(vlm: VLM, folder: Path, batch_size: int) -> None:
    asked = questions(folder)
    alone = [replies(vlm, [one], max_new_tokens=12, batch_size=1)[0] for one in asked]
    assert len(set(alone)) > 3
    assert replies(vlm, asked, max_new_tokens=12, batch_size=batch_size) == alone


def test_an_image_of_several_questions_is_encoded_once(vlm: VLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = vlm.prompter.pixels

    def pixels(images: list[ImageRef]) -> Any:
        seen.append(len(images))
        return plain(images)

    monkeypatch.setattr(type(vlm.prompter), "pixels", lambda self, images: pixels(images))
    replies(vlm, questions(folder), max_new_tokens=2, batch_size=16)
    assert sum(seen) == 1 + 2 + 1


def test_progress_is_reported(vlm: VLM, folder: Path) -> None:
    done: list[int] = []
    replies(vlm, questions(folder), max_new_tokens=1, batch_size=3, on_done=done.append)
    assert sum(done) == len(questions(folder)) and max(done) <= 3


def test_beginnings_are_as_long_as_they_can_be() -> None:
    image = 9
    cases = {
        ((1, 9, 9, 4, 5), (1, 9, 9, 4, 6)): 4,
        ((1, 9, 9, 4), (1, 9, 9, 4)): 3,  # the last token is what generation starts from
        ((1, 9, 9, 4), (1, 9, 9, 4, 7)): 3,
        ((1, 2, 9, 9, 4), (1, 3, 9, 9, 4)): 0,  # the image comes after the difference
        ((1, 9, 9), (1, 9, 9)): 0,  # an image is computed as a whole
    }
    for prompts, shared in cases.items():
        assert batched._shared([np.array(prompt) for prompt in prompts], image) == shared
