"""The configuration of a model -> a small random model of the same family, with a tokenizer or image processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    MODEL_MAPPING,
    AddedToken,
    AutoModelForCausalLM,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from sightline.model.reading import quiet

WIDTH, HEADS, LAYERS = 64, 4, 2
"""Of every stand-in; 4-bit weights need widths that are multiples of 64."""

PATCHES = 4
"""Patches on each side of a picture."""

LARGE = 100_000
"""Vocabularies beyond it are those of tiktoken's kind; smaller ones are SentencePiece's, with bytes."""

_TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. What colour is this? It is red, green, blue, yellow. USER ASSISTANT "
) * 4
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the tokenizers of Llama-3 and Qwen split a text before they merge bytes."""


def write_llm(config: Any, tokens: Sequence[str], positions: int, folder: Path) -> Path:
    """A language model of the configuration's family with a tokenizer that has `tokens` as control tokens."""
    tokenizer = _tokenizer(config, tokens)
    plain = config.to_dict()
    many = int(plain.get("num_key_value_heads") or plain["num_attention_heads"]) == plain["num_attention_heads"]
    small = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if many else HEADS // 2,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        "layer_types": (plain.get("layer_types") or [])[:LAYERS] or None,
    }
    chosen = type(config)(**{**plain, **{key: value for key, value in small.items() if key in plain}})
    with quiet():
        drawn(lambda: AutoModelForCausalLM.from_config(chosen)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tower(config: Any, folder: Path, *, layers: int) -> Path:
    """A vision tower of the configuration's family, with its image processor."""
    plain, side = config.to_dict(), PATCHES * int(config.patch_size)
    small = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "image_size": side,
        "projection_dim": WIDTH // 4,
        # DINOv2 counts its layers a second time, by name.
        "stage_names": None,
        "out_features": None,
        "out_indices": None,
    }
    chosen = type(config)(**{**plain, **{key: value for key, value in small.items() if key in plain}})
    with quiet():
        drawn(lambda: MODEL_MAPPING[type(chosen)](chosen)).save_pretrained(folder)
    square = {"height": side, "width": side}
    if config.model_type.startswith("siglip"):
        SiglipImageProcessorPil(size=square).save_pretrained(folder)
    else:
        kind = BitImageProcessorPil if config.model_type.startswith("dinov2") else CLIPImageProcessorPil
        kind(size={"shortest_edge": side}, crop_size=square).save_pretrained(folder)
    return folder


def drawn(make: Callable[[], Any]) -> Any:
    """The same random weights each time, and the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _tokenizer(config: Any, tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    large = config.vocab_size > LARGE and not config.model_type.startswith("gemma")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if large:
        # Qwen's tokenizers begin a text with nothing.
        named = {"eos_token": "<|endoftext|>"}
        if not config.model_type.startswith("qwen"):
            named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    tokenizer = _byte_level(list(named.values())) if large else _sentencepiece(list(named.values()))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return fast


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_TIKTOKEN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, special, pre_tokenizers.ByteLevel.alphabet())


def _sentencepiece(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _trained(tokenizer, [*special, *(f"<0x{byte:02X}>" for byte in range(256))], [])


def _trained(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT.split(".") if alphabet else _TEXT.split(), trainer)
    return tokenizer
