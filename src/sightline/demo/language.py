"""Texts of the world's language -> the demo's tokenizer and its language model, a small Llama."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from sightline.data.formats import to_conversation
from sightline.demo.learning import learn
from sightline.demo.questions import in_words
from sightline.demo.scenes import COLOURS, PLACES, SHAPES, caption, draw_scene
from sightline.demo.world import Lesson, conversation
from sightline.prompt.prompter import Prompter, template_named
from sightline.types import IGNORE, IMAGE

if TYPE_CHECKING:
    from sightline.demo.backbones import Schedule

VOCABULARY = 1280
LESSON = Lesson(choices=0.25, told=0.25)
"""What texts ask."""

ASCII = [chr(code) for code in range(33, 127)]

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
"""Heads of 32 (other programs refuse 16), and an inner size that differs from the outer one.

With Qwen's base of the rotations more of a head's 32 places turn so slowly that they compare what, not where.

With four layers all are needed to find an answer, and none is left to find its letter; six learn both.

Twice as wide learns as much in as many steps, each of which takes more than twice as long.
"""

NAMES = (*COLOURS, *SHAPES, *PLACES)
BORDERS = pre_tokenizers.Split(Regex(rf"▁?\b(?:{'|'.join(NAMES)})\b|▁?\p{{N}}"), "isolated")
"""Words with a meaning in this world, and numbers, are tokens of their own; what always stands between them becomes one
token, however many words it has. A question is then a few tokens, from which a small model learns much sooner."""


def train_tokenizer(seed: int) -> LlamaTokenizer:
    """A BPE tokenizer as Llama's: `▁` before words, bytes for what it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, BORDERS])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=ASCII, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(np.random.default_rng([seed, 1])), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    # LlamaTokenizer does not split; it need not, because no merge crosses a border.
    return LlamaTokenizer(vocab=model["vocab"], merges=merges)


def _corpus(rng: np.random.Generator) -> Iterator[str]:
    """Pieces of text as they stand in a prompt: behind `USER:` or a picture, behind `ASSISTANT:`.

    Names are so frequent that their merges come first: in the finished tokenizer, which does not know of borders, no
    phrase takes a letter from them.
    """
    for _ in range(500):
        yield "".join(f" {name}" for name in NAMES) * 50
        scene = draw_scene(rng)
        yield from ("USER:", " ASSISTANT:", f" {in_words(scene, rng)}\n")
        for scenes in ([scene], [scene, draw_scene(rng)]):
            for turn in conversation(scenes, rng, turns=3, lesson=LESSON):
                yield from (f" {turn['value']}", f"\n{turn['value']}")


def train_llm(folder: Path, tokenizer: LlamaTokenizer, schedule: Schedule, *, seed: int) -> float:
    """Train a Llama on scenes told in words and save it with its tokenizer; returns its last loss."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # One matrix for both ends makes copying easy to learn; it is saved as two, as Vicuna has them.
        tie_word_embeddings=True,
        initializer_range=0.1,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    texts = Texts(tokenizer, np.random.default_rng([seed, 2]))
    pool: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def loss_of(step: int) -> torch.Tensor:
        if not pool:
            pool.extend(texts.batches(schedule.batch))
        ids, labels = _padded(pool.pop())
        # Padding stands behind the text, where a causal model does not look from; so no mask is needed.
        hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        at = labels[:, 1:] != IGNORE
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[at]), labels[:, 1:][at])

    loss = learn("language model", model, schedule, loss_of)
    _untie(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss


class Texts:
    """An endless supply of texts as ids and labels."""

    def __init__(self, tokenizer: LlamaTokenizer, rng: np.random.Generator) -> None:
        # The prompter wants a tokenizer that knows <image>; the one that is saved does not, as with any language model.
        knowing = copy.deepcopy(tokenizer)
        knowing.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
        self.rng = rng
        self.tokenizer = tokenizer
        # Without a system prompt, as the demo's recipes have it.
        self.prompter = Prompter(knowing, template_named("vicuna", system=""), None, tokens_per_image=1)

    def batches(self, size: int, number: int = 16) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Batches of texts that are about equally long, in random order."""
        texts = sorted((self.one() for _ in range(size * number)), key=lambda text: len(text[0]))
        return [texts[at * size : (at + 1) * size] for at in self.rng.permutation(number)]

    def one(self) -> tuple[np.ndarray, np.ndarray]:
        """A caption after the scene in other words, or a conversation about one or two scenes."""
        sort = self.rng.random()
        scenes = [draw_scene(self.rng) for _ in range(1 if sort < 0.8 else 2)]
        told = "".join(f"{in_words(scene, self.rng)}\n" for scene in scenes)
        if sort < 0.1:
            head = [self.tokenizer.bos_token_id, *self.tokenizer(told, add_special_tokens=False)["input_ids"]]
            said = self.tokenizer(f"{caption(scenes[0])}\n", add_special_tokens=False)["input_ids"]
            ids = np.array([*head, *said])
            return ids, np.where(np.arange(len(ids)) < len(head), IGNORE, ids)
        turns = conversation(scenes, self.rng, turns=6 if len(scenes) == 1 else 4, lesson=LESSON)
        turns[0]["value"] = told + turns[0]["value"]
        encoded = self.prompter.encode(to_conversation({"conversations": turns}, "a text of the demo", None).messages)
        return encoded.ids, encoded.labels


def _padded(texts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [N, T] twice: ids, and labels that are IGNORE at the padding."""
    longest = max(len(ids) for ids, _ in texts)
    ids = np.zeros((len(texts), longest), dtype=np.int64)
    labels = np.full((len(texts), longest), IGNORE, dtype=np.int64)
    for row, (text, label) in enumerate(texts):
        ids[row, : len(text)], labels[row, : len(text)] = text, label
    return torch.from_numpy(ids), torch.from_numpy(labels)


def _untie(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model
