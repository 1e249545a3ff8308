"""Prompters without a model: tokenizers of every kind that matters, with the control tokens of all templates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tiny import WORDS, make_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from sightline.prompt.prompter import Prompter, template_named
from sightline.types import IMAGE, ImageRef, Message, Text

FEATURES = 4
"""Tokens of one picture: 28 px in patches of 14."""

CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>"),
    *("<eoh>", "<eoa>", "<reserved_102>", "<reserved_103>", "<reserved_106>", "<reserved_107>", "[gMASK]", "sop"),
    *("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "<｜end▁of▁sentence｜>",
)
"""Of all models at once: what every template needs."""

# The pattern in Llama-3's tokenizer.json: a line break sticks to the punctuation and the breaks before it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TINY = ("byte", "legacy", "first")
MERGING = ("llama3", "gpt2", "trimmed")
"""Byte-level tokenizers whose vocabularies hold runs of spaces and of line breaks, as real ones do."""

KINDS = (*TINY, *MERGING)


@cache
def tokenizer_of(kind: str) -> Any:
    """One of KINDS, or `stripping`: Llama-2's with control tokens that swallow the white space behind, as Phi-3 has."""
    stripping = kind == "stripping"
    tokenizer = _merging(kind) if kind in MERGING else make_tokenizer("legacy" if stripping else kind)
    tokens = [AddedToken(token, special=True, normalized=False, rstrip=stripping) for token in CONTROL]
    tokenizer.add_tokens([*tokens, AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def _merging(kind: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    if kind == "llama3":
        split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "trimmed":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS + 9 * "a.\nb\n\nc\n\n\nd  e   f\n \ng:\nh?\n\ni "] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def make_prompter(kind: str = "byte", template: str = "vicuna") -> Prompter:
    """A prompter for pictures of 28 px."""
    side = {"height": 28, "width": 28}
    processor = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 28}, crop_size=side)
    return Prompter(tokenizer_of(kind), template_named(template), processor, FEATURES)


def seen(prompter: Prompter, images: Sequence[ImageRef]) -> torch.Tensor:
    """What the vision tower takes for these images."""
    return prompter.pixel_values(prompter.pixels(images))


def said(role: Any, *parts: str | ImageRef) -> Message:
    """A message of texts and images."""
    return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))
