"""Turns of a conversation: what the model is asked in each, and that remembering changes no answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.chat.session import Session, after, answer, next_question, reset, show, start
from sightline.errors import DataError, UserError
from sightline.model.batched import replies
from sightline.model.generate import Memory, Sampling
from sightline.model.load import VLM
from sightline.prompt.prompter import template_named
from sightline.prompt.render import render, to_text
from sightline.types import ImageRef, Message, Text

GREEDY = Sampling(max_new_tokens=24)
RED, BLUE = ImageRef("red.png"), ImageRef("blue.png")


def ask_aloud(vlm: VLM, session: Session, text: str, memory: Memory) -> tuple[Session, str]:
    question = next_question(session, text)
    said = "".join(answer(vlm, session, question, GREEDY, memory, lambda: False))
    return after(session, question, said), said


def prompt(session: Session, text: str) -> str:
    messages = (*session.messages, next_question(session, text))
    return to_text(render(template_named("vicuna"), messages, bos="<s>", eos="</s>"))


def test_two_turns_as_llava_writes_them() -> None:
    # The prompt of LLaVA's conversation "v1", written down from haotian-liu/LLaVA, conversation.py and cli.py.
    session = start(images=(RED,))
    session = after(session, next_question(session, "What is this?"), "A square.")
    assert prompt(session, "What colour?") == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is this? ASSISTANT: A square.</s>"
        "USER: What colour? ASSISTANT:"
    )


def test_system_takes_the_place_of_the_templates_own() -> None:
    assert prompt(start(system="Be brief."), "Hi") == "<s>Be brief. USER: Hi ASSISTANT:"


def test_images_stand_in_front_or_where_the_question_says() -> None:
    session = show(start(images=(RED,)), BLUE)
    assert next_question(session, "Compare.").content == (RED, Text("\n"), BLUE, Text("\nCompare."))
    assert next_question(session, "Is <image> like <image>?").content == (
        Text("Is "),
        RED,
        Text(" like "),
        BLUE,
        Text("?"),
    )


@pytest.mark.parametrize(("images", "text"), [((RED, BLUE), "Is <image> red?"), ((), "Is <image> red?")])
def test_more_or_fewer_places_than_images(images: tuple[ImageRef, ...], text: str) -> None:
    with pytest.raises(DataError, match=f"written 1 times, but {len(images)} images wait"):
        next_question(start(images=images), text)


def test_reset_leaves_what_was_there_at_the_start() -> None:
    first = start("Be brief.", (RED,))
    later = show(after(first, next_question(first, "What?"), "A square."), BLUE)
    assert later.messages != first.messages
    assert reset(later) == first


def test_remembering_changes_no_answer(vlm: VLM, pictures: Path) -> None:
    red, blue = (ImageRef((pictures / f"{name}.png").read_bytes()) for name in ("red", "blue"))
    seen: list[int] = []
    hook = vlm.model.model.vision_tower.register_forward_hook(
        lambda module, args, out: seen.append(len(out.last_hidden_state))
    )
    memory, session = Memory(), start(images=(red,))
    computed: list[int] = []
    try:
        for number, text in enumerate(("What is this?", "And that, is it the same?", "Which one is red?")):
            session = show(session, blue) if number == 1 else session
            messages = (*session.messages, next_question(session, text))
            encoded = vlm.prompter.encode(messages)
            assert int((encoded.ids == vlm.prompter.tokenizer.bos_token_id).sum()) == 1
            seen.clear()
            session, said = ask_aloud(vlm, session, text, memory)
            computed.append(sum(seen))
            # From nothing, in one piece, by another path: the batched one of evaluation.
            assert said == replies(vlm, [messages], max_new_tokens=24, batch_size=1)[0] != ""
    finally:
        hook.remove()
    assert computed == [1, 1, 0], "every picture is looked at once, when it is new"


def test_what_was_computed_is_not_computed_again(vlm: VLM) -> None:
    lengths: list[int] = []
    hook = vlm.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        memory, question = Memory(), (Message("user", (Text("What colour is this square?"),)),)
        whole = len(vlm.prompter.encode(question).ids)
        for expected in (whole, 1):  # asked again after a reset, only the last token is new
            lengths.clear()
            ask_aloud(vlm, start(), "What colour is this square?", memory)
            assert lengths[0] == expected
    finally:
        hook.remove()


def test_a_full_context_is_said_and_nothing_else_happens(vlm: VLM) -> None:
    session = start()
    question = next_question(session, "red " * 600)
    with pytest.raises(UserError, match=r"the model sees 512; /reset"):
        list(answer(vlm, session, question, GREEDY, Memory(), lambda: False))


def test_the_context_of_a_stretched_model(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    monkeypatch.setattr(vlm.model.config.text_config, "rope_parameters", stretched)
    question = next_question(start(), "red " * 1200)
    with pytest.raises(UserError, match=r"the model sees 1024; /reset"):
        list(answer(vlm, start(), question, GREEDY, Memory(), lambda: False))


def test_an_answer_is_no_longer_than_the_context(vlm: VLM) -> None:
    text = "Describe the picture. " * 6
    while len(vlm.prompter.encode((next_question(start(), text),)).ids) < 505:
        text += " red"
    memory, question = Memory(), next_question(start(), text)
    length = len(vlm.prompter.encode((question,)).ids)
    list(answer(vlm, start(), question, GREEDY, memory, lambda: False))
    assert length < len(memory.ids) + 1 <= 512


def test_a_device_without_memory_is_a_remark(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    memory = Memory()
    _, before = ask_aloud(vlm, start(), "What?", memory)
    with monkeypatch.context() as patch:
        patch.setattr(type(vlm.model), "generate", full)
        with pytest.raises(UserError, match="no memory left on cpu"):
            ask_aloud(vlm, start(), "And now?", memory)
    assert ask_aloud(vlm, start(), "What?", memory)[1] == before


def stop_after(pieces: int) -> tuple[list[str], Callable[[], bool]]:
    said: list[str] = []
    return said, lambda: len(said) >= pieces


def test_a_stopped_answer_leaves_a_memory_that_is_right(vlm: VLM, pictures: Path) -> None:
    memory, session = Memory(), start(images=(ImageRef((pictures / "red.png").read_bytes()),))
    question = next_question(session, "What is this?")
    said, stopped = stop_after(2)
    for piece in answer(vlm, session, question, Sampling(max_new_tokens=300), memory, stopped):
        said.append(piece)
    assert 2 <= len(said) < 100
    session = after(session, question, "".join(said))
    _, next_answer = ask_aloud(vlm, session, "Go on.", memory)
    assert next_answer == ask_aloud(vlm, session, "Go on.", Memory())[1]


def test_numbers_of_ids_and_keys_agree(vlm: VLM) -> None:
    memory, session = Memory(), start()
    for text in ("What?", "Why?"):
        session, _ = ask_aloud(vlm, session, text, memory)
        assert memory.cache.get_seq_length() == len(memory.ids)
        assert np.array_equal(memory.ids[:8], vlm.prompter.encode(session.messages).ids[:8])
