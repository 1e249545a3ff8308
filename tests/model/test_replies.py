"""Answers are those that transformers' own generate gives for the same tokens: in batches, and with a memory."""

from __future__ import annotations

import copy
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from prompters import seen

from sightline.errors import DataError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.batched import replies
from sightline.model.generate import Memory, Sampling, reply
from sightline.model.load import VLM
from sightline.prompt.prompter import template_named
from sightline.recipe import ModelRecipe
from sightline.types import ImageRef, Message, Text, ask, interleave

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replies")
    for name in COLOURS:
        Image.new("RGB", (60, 56), tiny.COLOURS[name]).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    """Random weights that are large enough for a picture or a word to change the answer."""
    llm = tiny.make_llm(folder / "llm", initializer_range=0.15)
    spec = ModelRecipe(llm=str(llm), vision_tower=str(tiny.make_tower(folder / "tower")))
    torch.manual_seed(2)
    vlm = assemble(spec, make_prompter(spec))
    for parameter in vlm.model.model.vision_tower.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return vlm


@pytest.fixture
def pictures(folder: Path) -> dict[str, ImageRef]:
    return {name: ImageRef(str(folder / f"{name}.png")) for name in COLOURS}


def questions(pictures: dict[str, ImageRef]) -> list[list[Message]]:
    """Long and short, with no picture, one, two, and an earlier turn."""
    red, blue = pictures["red"], pictures["blue"]
    return [
        [ask("What?", [red])],
        [ask("What is red?")],
        [Message("user", interleave("Compare <image> and <image>, please.", [blue, red]))],
        [ask("?")],
        [Message("system", (Text("Be brief."),)), ask("What is this?" * 9, [blue])],
        [
            ask("What?", [blue]),
            Message("assistant", (Text("It is blue."),)),
            ask("And this?", [red]),
        ],
    ]


def theirs(vlm: VLM, messages: Sequence[Message], count: int, **settings: Any) -> list[int]:
    """The oracle: the new tokens of transformers' generate, alone and without padding."""
    encoded = vlm.prompter.encode(messages)
    ids = torch.from_numpy(encoded.ids)[None]
    pixels = {"pixel_values": seen(vlm.prompter, encoded.images)} if encoded.images else {}
    out: Any = vlm.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        **pixels,
        **settings,
    )
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new


def text(vlm: VLM, ids: list[int]) -> str:
    return str(vlm.prompter.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def streamed(
    vlm: VLM, messages: Sequence[Message], count: int = 12, memory: Memory | None = None, **sampling: Any
) -> str:
    return "".join(reply(vlm, messages, Sampling(max_new_tokens=count, **sampling), memory))


def test_as_transformers(vlm: VLM, pictures: dict[str, ImageRef]) -> None:
    wanted = [text(vlm, theirs(vlm, messages, 16)) for messages in questions(pictures)]
    assert len(set(wanted)) == len(wanted)
    assert [streamed(vlm, messages, 16) for messages in questions(pictures)] == wanted
    for batch_size in (1, 2, 4, 100):
        assert replies(vlm, questions(pictures), max_new_tokens=16, batch_size=batch_size) == wanted


def test_padding_on_the_left_moves_nothing(vlm: VLM, pictures: dict[str, ImageRef]) -> None:
    """The logits behind a padded prompt are those of the prompt alone, so that no answer hangs by a thread."""
    short = vlm.prompter.encode([ask("What?", [pictures["red"]])])
    ids, pixels = torch.from_numpy(short.ids)[None], seen(vlm.prompter, short.images)
    padded = torch.cat([torch.full((1, 37), vlm.prompter.pad_token_id), ids], 1)
    mask = torch.cat([torch.zeros(1, 37, dtype=torch.long), torch.ones_like(ids)], 1)
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    alone: Any = vlm.model.generate(ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **settings)
    beside: Any = vlm.model.generate(padded, attention_mask=mask, pixel_values=pixels, **settings)
    for one, other in zip(alone.logits, beside.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_more_tokens_than_asked_for(vlm: VLM, pictures: dict[str, ImageRef], count: int) -> None:
    for messages in questions(pictures):
        ids = theirs(vlm, messages, count)
        memory = Memory()
        assert streamed(vlm, messages, count, memory) == text(vlm, ids)
        assert len(memory.ids) == len(vlm.prompter.encode(messages).ids) + len(ids) - 1
    assert replies(vlm, questions(pictures), max_new_tokens=count, batch_size=3) == [
        text(vlm, theirs(vlm, messages, count)) for messages in questions(pictures)
    ]


def test_an_answer_ends_at_a_stop_string(vlm: VLM, pictures: dict[str, ImageRef]) -> None:
    whole = [streamed(vlm, messages, 20) for messages in questions(pictures)]
    stops = [found[0] for answer in whole if (found := re.findall(r"(?<=\w)[a-z ]{3}(?=\w)", answer))]
    assert len(set(stops)) > 3
    for stop in stops:
        before = [other.split(stop)[0].strip() for other in whole]
        assert before != whole
        assert replies(vlm, questions(pictures), max_new_tokens=20, batch_size=6, stop=[stop, "never said"]) == before
        assert [streamed(vlm, messages, 20, stop=(stop,)) for messages in questions(pictures)] == before


def test_the_end_of_the_template_ends_an_answer(vlm: VLM) -> None:
    """The second token of the answer, declared to be the end of all answers, is neither shown nor followed."""
    first, second = theirs(vlm, [ask("?")], 2)
    tokenizer = copy.deepcopy(vlm.prompter.tokenizer)
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(second)})
    other = VLM(vlm.model, dataclasses.replace(vlm.prompter, tokenizer=tokenizer))
    assert first != second and other.prompter.stop[0] == (second,)
    memory = Memory()
    streamed(other, [ask("?")], 20, memory)
    assert memory.ids[len(other.prompter.encode([ask("?")]).ids) :] == [first]
    assert replies(other, [[ask("?")]], max_new_tokens=20, batch_size=1) == [text(vlm, [first])]


def test_an_image_is_never_said(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a row behind the vocabulary, even where the model would like to."""
    weight = vlm.model.get_output_embeddings().weight
    before = weight.data.clone()
    try:
        hidden = theirs(vlm, [ask("?")], 1)[0]
        weight.data[vlm.prompter.image_token_id] = 9 * before[hidden]
        weight.data[len(vlm.prompter.tokenizer) :] = 8 * before[hidden]
        assert theirs(vlm, [ask("?")], 1) == [vlm.prompter.image_token_id]
        memory = Memory()
        streamed(vlm, [ask("?")], 8, memory)
        new = memory.ids[len(vlm.prompter.encode([ask("?")]).ids) :]
        assert len(new) == 7 and max(new) < vlm.prompter.image_token_id
    finally:
        weight.data = before


def test_sampling_is_repeated_by_its_seed(vlm: VLM) -> None:
    def sampled(seed: int, **settings: Any) -> str:
        torch.manual_seed(seed)
        return streamed(vlm, [ask("?")], 10, **settings)

    hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0}
    assert sampled(1, **hot) == sampled(1, **hot) != sampled(2, **hot)
    greedy = text(vlm, theirs(vlm, [ask("?")], 10))
    assert sampled(1, temperature=2.0, top_k=1, top_p=1.0) == greedy
    assert sampled(1, temperature=2.0, top_k=0, top_p=1e-6) == greedy
    assert sampled(1, temperature=1e-4, top_k=0, top_p=1.0) == greedy


def test_the_repetition_penalty_is_that_of_transformers(vlm: VLM, pictures: dict[str, ImageRef]) -> None:
    for messages in questions(pictures):
        wanted = text(vlm, theirs(vlm, messages, 12, repetition_penalty=1.3))
        assert streamed(vlm, messages, repetition_penalty=1.3) == wanted


@pytest.fixture
def computed(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens went through the language model in each call."""
    seen: list[int] = []
    forward = vlm.model.model.language_model.forward

    def count(*args: Any, **keywords: Any) -> Any:
        seen.append(keywords["inputs_embeds"].shape[1])
        return forward(*args, **keywords)

    monkeypatch.setattr(vlm.model.model.language_model, "forward", count)
    return seen


def turns(*parts: Message | str) -> list[Message]:
    return [Message("assistant", (Text(part),)) if isinstance(part, str) else part for part in parts]


def test_a_memory_changes_no_answer(vlm: VLM, pictures: dict[str, ImageRef], computed: list[int]) -> None:
    memory, prompt = Memory(), 1
    talk: list[Message] = []
    for question in (
        ask("What is this?", [pictures["red"]]),
        ask("And now?"),
        Message("user", interleave("Is <image> like <image>?", [pictures["blue"], pictures["red"]])),
        ask("Sure?"),
        ask("", [pictures["green"]]),
    ):
        talk.append(question)
        before, prompt = prompt, len(vlm.prompter.encode(talk).ids)
        computed.clear()
        answer = streamed(vlm, talk, memory=memory)
        # No prompt was computed twice; a random answer may be other tokens when it is read again.
        assert prompt - before - 12 <= computed[0] <= prompt - before + 1 and set(computed[1:]) == {1}
        assert memory.cache.get_seq_length() == len(memory.ids)
        assert answer == text(vlm, theirs(vlm, talk, 12))
        talk.append(Message("assistant", (Text(answer),)))


Edit = Callable[[dict[str, ImageRef]], list[Message]]
EDITS: dict[str, Edit] = {
    "another image": lambda p: turns(ask("What is this?", [p["blue"]]), "red", ask("And this?")),
    "another answer": lambda p: turns(ask("What is this?", [p["red"]]), "no", ask("And this?")),
    "another question": lambda p: turns(ask("What was this?", [p["red"]]), "red", ask("And this?")),
    "no image": lambda p: turns(ask("What is this?"), "red", ask("And this?")),
    "one more image": lambda p: turns(ask("What is this?", [p["red"], p["blue"]]), "red", ask("And this?")),
    "an image before": lambda p: turns(ask("What is this?", [p["blue"], p["red"]]), "red", ask("And this?")),
    "a shorter one": lambda p: turns(ask("What is this?", [p["red"]])),
    "something else": lambda p: turns(ask("?")),
    "the same again": lambda p: turns(ask("What is this?", [p["red"]]), "red", ask("And this?")),
    "a second image": lambda p: turns(ask("What is this?", [p["red"]]), "red", ask("And this?", [p["blue"]])),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_memory_of_something_else(vlm: VLM, pictures: dict[str, ImageRef], edit: str) -> None:
    first = turns(ask("What is this?", [pictures["red"]]), "red", ask("And this?"))
    messages = EDITS[edit](pictures)
    memory = Memory()
    streamed(vlm, first, memory=memory)
    assert streamed(vlm, messages, memory=memory) == text(vlm, theirs(vlm, messages, 12))
    assert streamed(vlm, first, memory=memory) == text(vlm, theirs(vlm, first, 12))


@pytest.mark.parametrize("kind", ["path", "bytes"])
@pytest.mark.parametrize("places", [("red", "blue", "blue"), ("red", "red", "blue"), ("red", "blue", "red")])
def test_a_changed_image_with_equal_tokens(
    vlm: VLM, pictures: dict[str, ImageRef], kind: str, places: tuple[str, str, str]
) -> None:
    def image(name: str) -> ImageRef:
        if kind == "path":
            return pictures[name]
        file = io.BytesIO()
        Image.new("RGB", (60, 56), tiny.COLOURS[name]).save(file, "PNG")
        return ImageRef(file.getvalue())

    def asked(*names: str) -> list[Message]:
        return [Message("user", interleave("<image>" * len(names), [image(name) for name in names]))]

    first, second = asked("red", "blue", "red"), asked(*places)
    assert vlm.prompter.encode(first).ids.tolist() == vlm.prompter.encode(second).ids.tolist()
    memory = Memory()
    streamed(vlm, first, memory=memory)
    wanted = text(vlm, theirs(vlm, second, 12))
    assert streamed(vlm, second, memory=memory) == wanted
    assert (wanted == text(vlm, theirs(vlm, first, 12))) == (places == ("red", "blue", "red"))


@pytest.mark.parametrize("names", [("red",), ("red", "blue"), ("blue",), ("red", "green", "blue")])
def test_a_prompt_that_ends_with_an_image(vlm: VLM, pictures: dict[str, ImageRef], names: tuple[str, ...]) -> None:
    """As captions are asked for: what stays of the first prompt must not end inside an image."""
    captions = VLM(vlm.model, dataclasses.replace(vlm.prompter, template=template_named("plain")))
    first, second = ([ask("", [pictures[name] for name in some])] for some in (("red", "blue"), names))
    assert captions.prompter.encode(second).ids[-1] == captions.prompter.image_token_id
    memory = Memory()
    for messages in (first, second, second, first):
        wanted = replies(captions, [messages], max_new_tokens=12, batch_size=1)[0]
        assert streamed(captions, messages, memory=memory) == wanted


def test_a_question_that_cannot_be_asked(vlm: VLM, folder: Path) -> None:
    broken = [ask("?", [ImageRef(str(folder / "nowhere.png"))])]
    with pytest.raises(DataError, match="nowhere"):
        replies(vlm, [broken], max_new_tokens=2, batch_size=1)


def test_an_error_inside_the_model_reaches_the_caller(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    head = vlm.model.lm_head.forward

    def fail(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise ZeroDivisionError("inside")
        return head(hidden)

    memory = Memory()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError, match="inside"):
        patch.setattr(vlm.model.lm_head, "forward", fail)
        list(reply(vlm, [ask("?")], Sampling(max_new_tokens=20), memory))
    assert streamed(vlm, [ask("?")], memory=memory) == text(vlm, theirs(vlm, [ask("?")], 12))
