"""What is kept of a run: damaged answers are asked for again, and answers to something else are not taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel, png

from sightline.errors import UserError
from sightline.evaluate.run import answer, fingerprint_of, unaskable
from sightline.evaluate.task import Question
from sightline.types import ImageRef, Message, ask


def question(text: str, name: str = "1") -> Question:
    return Question(name, (ask(text),), "x")


def asked_again(model: FakeModel, folder: Path, content: bytes) -> list[str]:
    """The questions asked when this is what a killed run left of its answers."""
    (folder / "answers.jsonl").write_bytes(content)
    model.calls.clear()
    answer(model.vlm, [question("a"), question("b", "2")], batch_size=1, max_new_tokens=1, folder=folder)
    return [messages[-1].text for messages in model.asked]


GOOD = b'{"n": 0, "id": "1", "answer": "x"}\n'


@pytest.mark.parametrize(
    "second",
    [
        b"",
        b'{"n": 1, "id"',
        b"5\n",
        b"NaN\n",
        b"[]\n",
        b"{}\n",
        b'{"n": 1, "id": "2"}\n',
        b'{"n": 1, "id": "2", "answer": 7}\n',
        b'{"n": 1, "id": "9", "answer": "x"}\n',
        b'{"n": 1, "id": "2", "answer": "\xe9"}\n',
        b"\x00" * 60 + b"\n",
        b'{"n": 1, "id": "2", "answer": "x"}',
    ],
)
def test_a_damaged_line_is_asked_again(model: FakeModel, tmp_path: Path, second: bytes) -> None:
    assert asked_again(model, tmp_path, GOOD + second) == ["b"]
    expected = GOOD + b'{"n": 1, "id": "2", "answer": "A"}\n'
    assert (tmp_path / "answers.jsonl").read_bytes() == expected


def test_ids_and_answers_of_any_characters_are_kept(model: FakeModel, tmp_path: Path) -> None:
    model.says = lambda messages: "é\u2028猫"
    questions = [question("a", "\ud800"), question("b", "x\ny")]
    for _ in range(2):
        answers = answer(model.vlm, questions, batch_size=1, max_new_tokens=1, folder=tmp_path)
        assert answers == ["é\u2028猫"] * 2
    assert len(model.asked) == 2


@pytest.mark.parametrize("part", ["image_processor", "config"])
def test_what_the_model_sees_is_part_of_the_fingerprint(model: FakeModel, part: str) -> None:
    before = fingerprint_of(model.vlm, [question("a")], {})
    if part == "config":
        model.vlm.model.config.vision_feature_layer = -1
    else:
        model.vlm.prompter.image_processor = "crop"
    assert fingerprint_of(model.vlm, [question("a")], {}) != before


def test_a_picture_that_was_replaced_is_part_of_the_fingerprint(model: FakeModel, tmp_path: Path) -> None:
    asked = [Question("1", (ask("What?", [ImageRef("a.png", str(tmp_path))]),), "x")]
    found = []
    for colour in ("red", "blue"):
        (tmp_path / "a.png").write_bytes(png(colour))
        os.utime(tmp_path / "a.png", ns=(len(found), len(found)))
        found.append(fingerprint_of(model.vlm, asked, {}))
    assert found[0] != found[1] == fingerprint_of(model.vlm, asked, {})


def unasked(model: FakeModel, questions: Sequence[Question], **settings: Any) -> dict[int, str]:
    return unaskable(model.vlm, questions, max_new_tokens=3, **settings)


def test_a_question_needs_room_for_its_answer(model: FakeModel) -> None:
    questions = [question("one two"), question("one two three"), question("\ud800")]
    assert unasked(model, questions) == {2: "a text holds half a surrogate pair"}
    model.limit = 5
    found = unasked(model, questions)
    assert found.keys() == {1, 2}
    assert found[1] == (
        "the question takes 3 tokens and its answer up to 3, but the model sees 5: "
        "shorten the question, or lower --max-new-tokens"
    )


def test_the_turns_before_a_question_take_room_too(model: FakeModel) -> None:
    model.limit = 5
    turns = (ask("one two"), Message("assistant", ask("three").content), ask("four"))
    assert unasked(model, [Question("1", turns, "x")]).keys() == {0}


def test_questions_about_one_image_are_asked_together(model: FakeModel, tmp_path: Path) -> None:
    images = [ImageRef(png((colour, 0, 0))) for colour in (1, 2)]
    texts = [("a", [images[0]]), ("b", [images[1]]), ("c", []), ("d", [images[0]]), ("e", []), ("f", [images[1]])]
    questions = [Question(text, (ask(text, seen),), "x") for text, seen in texts]
    model.says = lambda messages: messages[-1].text[-1]
    expected = list("abcdef")
    assert answer(model.vlm, questions, batch_size=1, max_new_tokens=1, folder=tmp_path) == expected
    assert [messages[-1].text[-1] for messages in model.asked] == list("adbfce")
    # A run that was cut off goes on in the same order.
    lines = (tmp_path / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[:3]))
    model.calls.clear()
    assert answer(model.vlm, questions, batch_size=1, max_new_tokens=1, folder=tmp_path) == expected
    assert [messages[-1].text[-1] for messages in model.asked] == list("fce")


HOLDS = "import sys, pathlib; from sightline.files import hold\n" + (
    "it = hold(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_processes_do_not_answer_into_one_folder(model: FakeModel, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "answers.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"another process is answering the same questions into .*; wait for it"):
            answer(model.vlm, [question("a")], batch_size=1, max_new_tokens=1, folder=tmp_path)
        other.kill()
        other.wait()
    assert answer(model.vlm, [question("a")], batch_size=1, max_new_tokens=1, folder=tmp_path) == ["A"]
