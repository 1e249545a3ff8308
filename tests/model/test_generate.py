"""Answers: streamed and batched are the same, nothing is lost on the way, and nothing unseen changes them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from sightline.errors import ModelError
from sightline.model import generate
from sightline.model.assemble import assemble, make_prompter
from sightline.model.batched import replies
from sightline.model.generate import Memory, Sampling, TextStream, reply
from sightline.model.load import VLM
from sightline.prompt.templates import TEMPLATES
from sightline.recipe import ModelRecipe
from sightline.types import ImageRef, ask

Make = Callable[..., VLM]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    tiny.make_tower(folder / "tower")
    for colour, value in tiny.COLOURS.items():
        Image.new("RGB", (60, 56), value).save(folder / f"{colour}.png")
    return folder


@pytest.fixture(scope="module")
def make(folder: Path) -> Make:
    def make(template: str = "vicuna", kind: str = "byte") -> VLM:
        llm = folder / f"llm_{kind}_{template}"
        if not llm.exists():
            tiny.make_llm(llm, kind=kind, extra=TEMPLATES[template].tokens)
        spec = ModelRecipe(llm=str(llm), vision_tower=str(folder / "tower"), template=template)
        torch.manual_seed(1)
        return assemble(spec, make_prompter(spec))

    return make


@pytest.mark.parametrize("template", ["vicuna", "plain", "chatml", "llama3_chat"])
@pytest.mark.parametrize("colours", [(), ("red",), ("red", "blue")])
def test_streamed_and_batched_are_the_same(make: Make, folder: Path, template: str, colours: tuple[str, ...]) -> None:
    # `plain` ends its prompt with an image, `chatml` and `llama3_chat` end an answer at strings.
    vlm = make(template)
    messages = [ask("What is this?", [ImageRef(str(folder / f"{colour}.png")) for colour in colours])]
    pieces = list(reply(vlm, messages, Sampling(max_new_tokens=40)))
    assert "".join(pieces) == replies(vlm, [messages], max_new_tokens=40, batch_size=1)[0]
    assert len(pieces) > 3


def test_a_batch_of_all_kinds_is_answered_in_order(make: Make, folder: Path) -> None:
    vlm = make()
    questions = [
        [ask("What is this?", [ImageRef(str(folder / f"{colour}.png")) for colour in colours])]
        for colours in ((), ("red",), ("blue", "red"), ("red", "blue"), ())
    ]
    one_by_one = [replies(vlm, [question], max_new_tokens=12, batch_size=1)[0] for question in questions]
    assert replies(vlm, questions, max_new_tokens=12, batch_size=3) == one_by_one
    assert len(set(one_by_one)) == 4, "the pictures matter, and so does their order"


def test_the_models_generation_config_changes_no_answer(make: Make) -> None:
    vlm = make()
    before = replies(vlm, [[ask("What?")]], max_new_tokens=40, batch_size=1)
    for name, value in {
        "no_repeat_ngram_size": 1,
        "num_beams": 3,
        "repetition_penalty": 5.0,
        "do_sample": True,
        "min_new_tokens": 40,
        "eos_token_id": 5,
    }.items():
        setattr(vlm.model.generation_config, name, value)
    assert replies(vlm, [[ask("What?")]], max_new_tokens=40, batch_size=1) == before
    assert vlm.model.generation_config.num_beams == 3, "it is still there to be saved"


def with_plain_bytes(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokens <0x00> ... as Llama-2 has them: not special, so that decoding keeps them."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="</s>")


@pytest.mark.parametrize("kind", ["byte", "legacy", "first"])
@pytest.mark.parametrize(
    "text", ["It is red.\n  - green\n  - blue\n\nA.", "颜色是 红色的。\n 是", "naïve 🟥🟦 ok", "  two  blanks  "]
)
def test_text_comes_in_pieces_that_join_to_the_whole(kind: str, text: str) -> None:
    tokenizer = with_plain_bytes(tiny.make_tokenizer(kind))
    stream = TextStream(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream.put(torch.tensor([[1, 2, 3]]))
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.end()
    stream.pieces.put(None)
    pieces = list(stream)
    whole = tokenizer.decode(ids)
    assert "".join(pieces) == whole and whole.strip() == text.strip()
    assert len(pieces) > len(whole) / 4 and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_not_swallowed() -> None:
    tokenizer = tiny.make_tokenizer("byte")
    stream = TextStream(tokenizer)
    stream.put(torch.tensor([[1]]))
    stream.put(torch.tensor(tokenizer("是", add_special_tokens=False)["input_ids"][:2]))
    assert stream.pieces.empty()
    stream.end()
    assert stream.pieces.get() == "\N{REPLACEMENT CHARACTER}"


def test_stop_strings_are_cut_off_wherever_the_pieces_break() -> None:
    for pieces in (["abc<end>d"], ["abc<", "en", "d>d"], list("abc<end>d")):
        assert "".join(generate.without_stop(iter(pieces), ["<end>"])) == "abc"
    assert "".join(generate.without_stop(iter(["abc<", "en"]), ["<end>"])) == "abc<en"


def test_blanks_inside_an_answer_stay() -> None:
    assert "".join(generate._stripped(iter(["\n ", " a", " ", "\n", "b ", " "]))) == "a \nb"


def test_closing_ends_the_work(make: Make) -> None:
    vlm, memory, before = make(), Memory(), threading.active_count()
    answer = reply(vlm, [ask("What?")], Sampling(max_new_tokens=400), memory)
    next(answer)
    assert threading.active_count() == before + 1
    answer.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(memory.ids) < 200 and memory.cache.get_seq_length() == len(memory.ids)


def test_what_goes_wrong_is_raised_where_the_answer_is_read(make: Make, folder: Path) -> None:
    vlm, memory = make(), Memory()
    list(reply(vlm, [ask("What?")], Sampling(max_new_tokens=4), memory))
    with pytest.raises(Exception, match=r"no\.png"):
        list(reply(vlm, [ask("What?", [ImageRef(str(folder / "no.png"))])], Sampling(max_new_tokens=4), memory))
    assert memory == Memory(cache=memory.cache) and memory.cache.get_seq_length() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_answer_comes_out_of_a_model_that_computes_no_numbers(make: Make, value: float, temperature: float) -> None:
    vlm = make()
    vlm.model.lm_head.weight.data = torch.full_like(vlm.model.lm_head.weight, value)
    with pytest.raises(ModelError, match="computes no numbers"):
        list(reply(vlm, [ask("What is this?")], Sampling(max_new_tokens=4, temperature=temperature)))
    with pytest.raises(ModelError, match="computes no numbers"):
        replies(vlm, [[ask("What is this?")]] * 2, max_new_tokens=4, batch_size=2)


def test_sixteen_bits_that_overflow_are_told_with_the_remedy() -> None:
    scores = torch.tensor([[1.0, 70_000.0]]).half()  # above 65,504
    with pytest.raises(ModelError, match="too large for float16: try --torch-dtype bf16 or fp32"):
        generate._sound(torch.float16, torch.zeros(1, 5), scores)
    fine = torch.tensor([[1.0, -float("inf")]])
    assert generate._sound(torch.float32, torch.zeros(1, 5), fine) is fine, "a suppressed token is none of these"
