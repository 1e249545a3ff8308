"""The demo's own language model and vision tower: folders that transformers loads, made once."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pytest
from runs import half_written
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from sightline.demo import backbones as module
from sightline.demo.backbones import Backbones, Schedule, Schedules, _make, fingerprint, make_backbones
from sightline.demo.language import Texts, train_tokenizer
from sightline.demo.questions import in_words
from sightline.demo.scenes import COLOURS, PLACES, SHAPES, draw_scene
from sightline.demo.tower import _family
from sightline.errors import UserError
from sightline.types import IGNORE

TINY = Schedules(llm=Schedule(3, 4, 1e-3), tower=Schedule(3, 8, 1e-3), pictures=16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Backbones:
    return make_backbones(0, tmp_path_factory.mktemp("cache"), TINY)


def test_transformers_loads_both(made: Backbones) -> None:
    llm, found = AutoModelForCausalLM.from_pretrained(made.llm, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert not llm.config.tie_word_embeddings
    assert llm.config.head_dim == 32
    assert llm.config.intermediate_size != llm.config.hidden_size
    tower, found = CLIPVisionModel.from_pretrained(made.vision_tower, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    processor = AutoImageProcessor.from_pretrained(made.vision_tower, backend="pil")
    assert processor.crop_size["height"] == tower.config.image_size == 56
    tokenizer = AutoTokenizer.from_pretrained(made.llm)
    assert llm.config.vocab_size == len(tokenizer)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


def test_a_second_call_finds_what_the_first_made(made: Backbones, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "seed_everything", refuse)
    assert make_backbones(0, made.llm.parent, TINY) == made
    assert not [path for path in made.llm.parent.iterdir() if path.name.startswith(".")]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> float:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sightline.demo.tower.train_tower", fail)
    with pytest.raises(UserError, match=r"no space left while writing .*vision-tower-"):
        make_backbones(0, tmp_path, TINY)
    # The other one is kept: it is complete.
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["llm"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda path: os.truncate(path, 5000)),
        ("config.json", lambda path: os.truncate(path, 0)),
        ("tokenizer.json", Path.unlink),
        ("sums.json", lambda path: path.write_text("[]")),
        ("sums.json", Path.unlink),
    ],
)
def test_a_damaged_one_is_made_again(
    made: Backbones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None]
) -> None:
    llm = tmp_path / "llm-x"
    shutil.copytree(made.llm, llm)
    again: list[Path] = []

    def make(folder: Path, *_: object) -> None:
        again.append(folder)
        shutil.copytree(made.llm, folder, dirs_exist_ok=True)
        (folder / "sums.json").unlink()

    _make(llm, 0, make, ())
    assert not again
    damage(llm / name)
    _make(llm, 0, make, ())
    assert len(again) == 1
    assert {path.name: path.read_bytes() for path in llm.iterdir()} == {
        path.name: path.read_bytes() for path in made.llm.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["llm-x"]


def test_what_a_killed_call_left_is_swept(made: Backbones, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    half_written(tmp_path / "llm-x")
    (tmp_path / "llm-of-another-seed").mkdir()
    monkeypatch.setattr(module, "_make", lambda *_: None)
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    make_backbones(0, tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["llm-of-another-seed"]


def test_a_killed_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_make", _die)
    with pytest.raises(UserError, match="was killed; call again"):
        make_backbones(0, tmp_path, TINY)


def _die(*_: object) -> None:
    if parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_fingerprint_changes_with_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(0, TINY)
    assert first == fingerprint(0, TINY)
    assert first != fingerprint(1, TINY)
    assert first != fingerprint(0, replace(TINY, pictures=20))
    monkeypatch.setattr(module, "versions", lambda: {"torch": "0.0"})
    assert first != fingerprint(0, TINY)


def test_names_are_tokens_of_their_own(made: Backbones) -> None:
    """No token spans a name and what stands beside it, so what is asked and what is answered is seen as it is."""
    tokenizer = AutoTokenizer.from_pretrained(made.llm)
    names = {f"▁{name}" for name in (*COLOURS, *SHAPES, *PLACES)}
    assert names <= tokenizer.get_vocab().keys()
    assert not [token for token in tokenizer.get_vocab() if any(name in token and name != token for name in names)]
    prompt = "USER: Where is the circle? ASSISTANT:"
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert len(ids) == 6  # a blank in front, as Llama has it
    for answer in ("northwest", "red circle", "B", "3"):
        whole = tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
        words = [f"▁{word}" for word in answer.split()]
        assert whole[: len(ids)] == ids and tokenizer.convert_ids_to_tokens(whole[len(ids) :]) == words
    for text in ("A red circle in the northwest.", "[0.06, 0.06, 0.28, 0.28]", "Ein Bär, 圆", "A. red\nB. blue"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_tokenizer_is_the_same_each_time(made: Backbones) -> None:
    assert train_tokenizer(0).get_vocab() == AutoTokenizer.from_pretrained(made.llm).get_vocab()


def test_texts_are_conversations_with_their_scene_in_words(made: Backbones) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.llm)
    texts = Texts(tokenizer, np.random.default_rng(0))
    for _ in range(60):
        ids, labels = texts.one()
        assert ids[0] == tokenizer.bos_token_id and len(ids) == len(labels) < 400
        targets = labels != IGNORE
        assert targets.any() and (labels[targets] == ids[targets]).all()
        assert tokenizer.decode(ids[targets]).rstrip("\n").endswith(("</s>", "."))


def test_a_family_differs_in_one_thing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene, *others = _family(rng)
        assert len({scene, *others}) == 4
        for other in others:
            assert len(set(scene.things) - set(other.things)) == 1 and not other.held_out


def test_words_differ_between_forms() -> None:
    rng = np.random.default_rng(0)
    assert {in_words(draw_scene(rng), rng).split()[0] for _ in range(50)} == {"square", "wide", "tall"}
