"""llama.cpp makes the same ids as transformers of everything that a prompt may hold."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from llama_cpp import assembled, serving, written
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sightline.convert.gguf_tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, rstrips, tokenizer_keys
from sightline.errors import ModelError
from sightline.model.tiny_parts import _TIKTOKEN
from sightline.prompt.prompter import Prompter
from sightline.prompt.templates import TEMPLATES

PIECES = (
    *("What colour is this square?", "USER: ", " ASSISTANT:", "the", "A.", "red", "don't", "IT'S", "we'LL", "x=1_000;"),
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "3", "12345", "3.14", "2026-11-21", "...", "?!", '"', "'"),
    *("你好，世界", "图片里有什么？", "日本語テスト", "한국어", "Привет", "مرحبا", "हिन्दी", "Grüße", "Å"),
    *("cafe\u0301", "ﬁ"),
    *("🙂", "👩‍👩‍👧", "🇩🇪", "❤️", "\u200b", "\u00a0", "▁", "½", "x²", "𝔘𝔫𝔦", "\\", "{{ }}", "<br>", "<0x41 >", "<|x|>"),
    *("<image>", "</s>", "<unk>", "<s>"),
)


def strings(begin: str = "") -> list[str]:
    """500 of them, 1 to 8 pieces each."""
    rng = random.Random(0)
    return [begin + "".join(rng.choices(PIECES, k=rng.randint(1, 8))) for _ in range(500)]


def byte_level(pattern: str, *, whole: bool = False, digits: bool = False) -> PreTrainedTokenizerFast:
    """The byte-level fixture with another way to split texts, as Llama-3's and Qwen's have it."""
    fast = tiny.make_tokenizer()
    made = fast.backend_tokenizer
    made.model.ignore_merges = whole
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=digits)
    first = (
        pre_tokenizers.Digits(individual_digits=True) if digits else pre_tokenizers.Split(Regex(pattern), "isolated")
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    return fast


def spelled(scheme: str) -> PreTrainedTokenizerFast:
    """SentencePiece's kind with tokens that span words; `gemma`: without a space in front, with tokens of spaces."""
    fast = tiny.make_tokenizer("legacy")
    made = fast.backend_tokenizer
    if scheme == "gemma":
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        fast.add_tokens([AddedToken("▁▁", normalized=True), AddedToken("\n\n", normalized=False)])
    else:
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    return fast


_QWEN = _TIKTOKEN.replace(r"\p{N}{1,3}", r"\p{N}")

KINDS: dict[str, Any] = {
    "gpt2": lambda: tiny.make_tokenizer(),
    "llama3": lambda: byte_level(_TIKTOKEN, whole=True),
    "llama3_merging": lambda: byte_level(_TIKTOKEN),
    "qwen2": lambda: byte_level(_QWEN),
    "digits": lambda: byte_level("", digits=True),
    "legacy": lambda: tiny.make_tokenizer("legacy"),
    "always": lambda: spelled("always"),
    "first": lambda: spelled("first"),
    "gemma": lambda: spelled("gemma"),
}


def exported(folder: Path, tokenizer: Any) -> tuple[Any, Path]:
    """A model with that tokenizer, and more rows of embeddings than tokens; the tokenizer as transformers has it."""
    llm = tiny.make_llm(folder / "llm", vocab_size=640)
    tokenizer.save_pretrained(llm)
    vlm = assembled(folder / "hf", llm, tiny.make_tower(folder / "tower"))
    return vlm.prompter.tokenizer, written(folder / "hf", folder / "gguf")


def beyond(kind: str, text: str) -> bool:
    """What cannot be the same, of all these strings."""
    if kind == "always":  # adds no space where there is one, though SentencePiece and llama.cpp do
        return re.search("(^|<image>|</s>|<unk>|<s>)[ ▁]", text) is not None
    return kind == "gemma" and "▁" in text  # looks for its tokens of spaces in a text in which ▁ stands for a space


@pytest.mark.parametrize("kind", KINDS)
def test_500_strings(tmp_path: Path, kind: str) -> None:
    tokenizer, folder = exported(tmp_path, KINDS[kind]())
    # Where only the beginning of a whole text gets a space, prompts get none: they begin with a token.
    texts = strings("<s>" if kind == "first" else "")
    with serving(folder) as server:
        odd = [text for text in texts if server.ids(text) != tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert [text for text in odd if not beyond(kind, text)] == []
        assert server.ids("") == [] and len(odd) < 80
        # What the answers look like: no token is lost, or written in another way.
        ids = tokenizer("a  red\nsquare, it's 3 o'clock", add_special_tokens=False)["input_ids"]
        said = server.ask("/detokenize", {"tokens": ids})["content"]
    assert said.strip() == "a  red\nsquare, it's 3 o'clock"


def keys_of(tokenizer: Any, *, rows: int = 704, template: str = "vicuna") -> dict[str, Any]:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    prompter = Prompter(tokenizer, TEMPLATES[template], image_processor=None, tokens_per_image=16)
    keys = tokenizer_keys(prompter, rows)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in keys.items()}


@pytest.mark.parametrize(
    ("kind", "model", "pre"),
    [
        ("gpt2", "gpt2", "gpt-2"),
        ("llama3", "gpt2", "llama-bpe"),
        ("llama3_merging", "gpt2", "smaug-bpe"),
        ("qwen2", "gpt2", "qwen2"),
        ("digits", "gpt2", "smollm"),
        ("legacy", "llama", "default"),
    ],
)
def test_names_of_ways_to_split(kind: str, model: str, pre: str) -> None:
    keys = keys_of(KINDS[kind]())
    assert (keys["model"], keys["pre"]) == (model, pre)


def test_types_of_tokens() -> None:
    tokenizer = tiny.make_tokenizer(extra=("<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken("<box>", special=False)])
    keys = keys_of(tokenizer, template="chatml")
    types = dict(zip(keys["tokens"], keys["token_type"], strict=True))
    assert len(types) == len(keys["tokens"]) == 704
    assert types["</s>"] == types["<image>"] == types["<|im_end|>"] == CONTROL
    assert types["<box>"] == USER_DEFINED and types["a"] == NORMAL and types["[PAD703]"] == UNUSED
    assert keys["eos_token_id"] == tokenizer.eos_token_id
    assert keys["eot_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_text_begins_with_a_token_where_the_template_writes_it() -> None:
    assert keys_of(tiny.make_tokenizer())["add_bos_token"] is True
    extra = ("<|im_start|>", "<|im_end|>")
    assert keys_of(tiny.make_tokenizer(extra=extra), template="chatml")["add_bos_token"] is False


def test_a_chat_template_of_the_tokenizers_own_that_writes_the_token() -> None:
    """`auto` has it as it is written there, not as a mark."""
    prompter = Prompter(tiny.make_tokenizer(extra=("<image>",)), replace(TEMPLATES["vicuna"], begin="<s>"), None, 16)
    assert tokenizer_keys(prompter, 704)["tokenizer.ggml.add_bos_token"] is True


def word_level() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def without_bytes() -> PreTrainedTokenizerFast:
    fast = tiny.make_tokenizer("legacy")
    fast.backend_tokenizer.model.byte_fallback = False
    return fast


def lower_case() -> PreTrainedTokenizerFast:
    fast = tiny.make_tokenizer()
    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    return fast


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (word_level, "WordLevel"),
        (without_bytes, "neither byte-level nor"),
        (lower_case, "Lowercase"),
        (lambda: byte_level(r"\w+|\W+"), r"no known name for: \w+|\W+"),
        (lambda: byte_level(_QWEN, whole=True), "no known name"),
    ],
)
def test_refused(make: Any, reason: str) -> None:
    with pytest.raises(ModelError) as refused:
        keys_of(make())
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_more_tokens_than_rows() -> None:
    with pytest.raises(ModelError, match="100 rows"):
        keys_of(tiny.make_tokenizer(), rows=100)


PHI_3 = [
    AddedToken("</s>", rstrip=True, normalized=False),
    AddedToken("<|end|>", rstrip=True, special=True, normalized=False),
    # The fixture has its bytes among the special tokens.
    *(AddedToken(f"<0x{byte:02X}>", rstrip=True, special=True, normalized=False) for byte in range(256)),
    AddedToken("<|endoftext|>", special=True, normalized=False),
]


def with_tokens(*tokens: AddedToken) -> PreTrainedTokenizerFast:
    fast = tiny.make_tokenizer("legacy")
    fast.add_tokens([*tokens])
    return fast


def test_tokens_that_swallow_spaces() -> None:
    """As Phi-3's tokenizer.json has them (https://huggingface.co/microsoft/Phi-3-mini-4k-instruct)."""
    assert rstrips(tiny.make_tokenizer()) is False
    assert rstrips(with_tokens(*PHI_3)) is True
    for some in (PHI_3[:-1], PHI_3[1:], [*PHI_3, AddedToken("<|x|>", special=True)]):
        with pytest.raises(ModelError, match="Phi-3's alone"):
            rstrips(with_tokens(*some))
    with pytest.raises(ModelError, match="<mask> looks at"):
        rstrips(with_tokens(AddedToken("<mask>", lstrip=True)))


def test_phi_3(tmp_path: Path) -> None:
    tokenizer, folder = exported(tmp_path, with_tokens(*PHI_3))
    words = "<s>USER: a<|end|>\n  b</s> c<|endoftext|> d <|end|> "
    with serving(folder) as server:
        said = server.ids(words)
    assert said == tokenizer(words, add_special_tokens=False)["input_ids"]
