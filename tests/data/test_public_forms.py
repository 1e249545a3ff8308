"""Forms that other programs and public sets have, beside those of test_forms: understood, or refused with the reason.

Shapes after their documentation, named at each; words and files are made up here.
"""

from __future__ import annotations

from typing import Any

import pytest

from sightline.data.formats import understand
from sightline.errors import DataError

Row = dict[str, Any]

ANSWER = {"role": "assistant", "content": "A."}
TURNS = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A."}]

UNDERSTOOD: dict[str, tuple[Row, list[str], list[str], list[str]]] = {
    # MiniCPM-V, finetune/readme.md: several images are named, and the texts say their names.
    "minicpm": (
        {
            "id": "0",
            "image": {"<image_00>": "a.jpg", "<image_01>": "b.jpg"},
            "conversations": [{"role": "user", "content": "<image_00>\n<image_01>\nQ"}, ANSWER],
        },
        ["<image>\n<image>\nQ", "A."],
        ["a.jpg", "b.jpg"],
        [],
    ),
    # Phi-3-vision, its fine-tuning recipe: pairs that name their own images.
    "phi3v": (
        {"id": "0", "source": "s", "conversations": [{"images": ["a.jpg"], "user": "Q", "assistant": "A."}]},
        ["<image>\nQ", "A."],
        ["a.jpg"],
        [],
    ),
    # DeepSeek-VL and Janus, with the roles of the field: images of the turn, a word of the model for each.
    "deepseek_vl": (
        {"messages": [{"role": "user", "content": "<image_placeholder>Q", "images": ["a.jpg"]}, ANSWER]},
        ["<image>Q", "A."],
        ["a.jpg"],
        [],
    ),
    # InternLM-XComposer2, finetune/README.md.
    "xcomposer": (
        {
            "id": "0",
            "image": ["a.jpg", "b.jpg"],
            "conversations": [
                {"from": "user", "value": "<ImageHere> <ImageHere>Q"},
                {"from": "assistant", "value": "A."},
            ],
        },
        ["<image> <image>Q", "A."],
        ["a.jpg", "b.jpg"],
        [],
    ),
    # mPLUG-Owl2, README of its fine-tuning.
    "owl2": (
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<|image|>Q"}, TURNS[1]]},
        ["<image>Q", "A."],
        ["a.jpg"],
        [],
    ),
    # Anthropic's messages: the image under `source`.
    "anthropic": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}},
                        {"type": "image", "source": {"type": "url", "url": "a.jpg"}},
                        {"type": "text", "text": "Q"},
                    ],
                },
                ANSWER,
            ]
        },
        ["<image><image>Q", "A."],
        ["data:image/jpeg;base64,AAAA", "a.jpg"],
        [],
    ),
    # Qwen2.5-VL, messages with sizes of its own, which have no meaning here.
    "qwen25vl": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "a.jpg", "max_pixels": 50176}, {"text": "Q"}]},
                ANSWER,
            ]
        },
        ["<image>Q", "A."],
        ["a.jpg"],
        ["'max_pixels' of an image or a text is not read"],
    ),
    # LLaVA-NeXT-Interleave, M4-Instruct.
    "m4_instruct": (
        {
            "sample_id": 1,
            "image": ["a.jpg"],
            "conversations": TURNS,
            "choice_list": None,
            "metadata": {"dataset": "x", "split": "train"},
        },
        ["<image>\nQ", "A."],
        ["a.jpg"],
        ["'metadata' is not read"],
    ),
    # ms-swift, rows of preferences: only the answer that is better.
    "swift_preference": (
        {"messages": [{"role": "user", "content": "<image>Q"}, ANSWER], "images": ["a.jpg"], "rejected_response": "B."},
        ["<image>Q", "A."],
        ["a.jpg"],
        ["'rejected_response' is not read"],
    ),
}

REFUSED: dict[str, tuple[Row, str]] = {
    # LLaVA-Med, its instruction data.
    "llava_med": (
        {"id": "0", "image": "a.jpg", "conversatons": TURNS},
        "no 'conversations' in the row (it has: 'id', 'image', 'conversatons'); 'conversatons' is not read, "
        "did you mean 'conversations'?",
    ),
    # MMMU on the hub: a question of a test, no conversation.
    "mmmu": (
        {"id": "0", "question": "<image 1> Q", "options": "['a', 'b']", "answer": "A", "image_1": {"path": "a.png"}},
        "no 'conversations' in the row (it has: 'id', 'question', 'options', 'answer', 'image_1')",
    ),
    # Alpaca, as LLaMA-Factory's data/README.md has it.
    "alpaca": (
        {"instruction": "Q", "input": "", "output": "A.", "images": ["a.jpg"]},
        "no 'conversations' in the row (it has: 'instruction', 'input', 'output', 'images')",
    ),
    # TRL, docs of dataset formats: prompt and completion.
    "trl": (
        {"prompt": [{"role": "user", "content": "Q"}], "completion": [ANSWER], "images": ["a.jpg"]},
        "no 'conversations' in the row (it has: 'prompt', 'completion', 'images')",
    ),
    # LLaMA-Factory, rows of tools.
    "tools": (
        {"conversations": [TURNS[0], {"from": "function_call", "value": "{}"}], "tools": "[]", "images": ["a.jpg"]},
        "turn 2: unknown 'from' 'function_call'; known: human, user, gpt, assistant, system",
    ),
    # Qwen2.5-VL and LLaVA-Video: rows with a video.
    "video": (
        {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nQ"}, TURNS[1]]},
        "the row has 'video'; only images are understood",
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_what_is_understood(name: str) -> None:
    row, texts, images, told = UNDERSTOOD[name]
    conversation, findings = understand(row, "rows", "images")
    assert [message.text for message in conversation.messages] == texts
    assert [image.source for image in conversation.images] == images
    assert [finding.reason for finding in findings if finding.kind != "image_in_front"] == told


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    row, reason = REFUSED[name]
    with pytest.raises(DataError) as error:
        understand(row, "rows", "images")
    assert str(error.value) == f"rows: {reason}"
