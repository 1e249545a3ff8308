"""A tokenizer.model gives the ids that the package sentencepiece gives.

`sentencepiece.json` holds two small models, with the flags of InternLM2's (no dummy prefix) and of InternLM's, trained
by sentencepiece 0.2.3 (BPE, byte fallback, no normalisation, six user-defined symbols), and its ids of some texts.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sightline.errors import ModelError
from sightline.model.llama_tokenizer import carry_tokenizer, rebuilt
from sightline.model.sentencepiece import read_sentencepiece, to_tokenizer

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("sentencepiece.json").read_text(encoding="utf-8"))


def model_file(folder: Path, kind: str) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(base64.b64decode(GOLDEN[kind]["model"]))
    return path


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_same_ids(tmp_path: Path, kind: str) -> None:
    tokenizer = to_tokenizer(read_sentencepiece(model_file(tmp_path, kind)))
    assert len(GOLDEN[kind]["ids"]) == 15
    for text, ids in GOLDEN[kind]["ids"].items():
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text


@pytest.mark.parametrize("kind", GOLDEN)
def test_decoding_gives_the_text_back(tmp_path: Path, kind: str) -> None:
    tokenizer = to_tokenizer(read_sentencepiece(model_file(tmp_path, kind)))
    for text, ids in GOLDEN[kind]["ids"].items():
        if "UNUSED" not in text:
            assert tokenizer.decode(ids, skip_special_tokens=False) == text


SETTINGS = {
    "tokenizer_class": "InternLM2Tokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
    "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "added_tokens_decoder": {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        "7": {"content": "<|im_end|>", "special": True},
        "8": {"content": "<|im_start|>", "special": True},
    },
}


def test_unused_tokens_get_the_names_of_the_folder(tmp_path: Path) -> None:
    """As in InternLM2-chat, whose control tokens stand at the places of [UNUSED_TOKEN_...]."""
    model_file(tmp_path, "internlm2")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    carry_tokenizer(tmp_path, out, keep=False)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = GOLDEN["internlm2"]["ids"]
    body = tokenizer("<|im_start|>user\nhello<|im_end|>\n", add_special_tokens=False)["input_ids"]
    plain = to_tokenizer(read_sentencepiece(tmp_path / "tokenizer.model"))
    assert body == [8, *plain.encode("user\nhello").ids, 7, *plain.encode("\n").ids]
    assert tokenizer("What colour is this?")["input_ids"] == [1, *ids["What colour is this?"]]
    assert len(tokenizer) == plain.get_vocab_size() == 540
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == SETTINGS["chat_template"]
    assert tokenizer.decode(body, skip_special_tokens=True) == "user\nhello\n"
    assert "UNUSED_TOKEN_2" in tokenizer.convert_ids_to_tokens(5)


def test_the_fast_form_is_taken_where_there_is_one(tmp_path: Path) -> None:
    import tiny

    tiny.make_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert rebuilt(tmp_path).get_vocab() == tiny.make_tokenizer().get_vocab()


def test_a_token_at_the_place_of_another(tmp_path: Path) -> None:
    model_file(tmp_path, "internlm2")
    settings = {"added_tokens_decoder": {"600": {"content": "<|new|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match=r"puts <\|new\|> at 600"):
        rebuilt(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, b"hello world"])
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError):
        to_tokenizer(read_sentencepiece(tmp_path / "tokenizer.model"))


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = model_file(tmp_path, "internlm2")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelError, match="damaged"):
        read_sentencepiece(path)
