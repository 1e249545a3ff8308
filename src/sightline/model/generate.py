"""Messages -> an answer, streamed, with the key-value cache of the conversation kept from turn to turn."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from sightline.errors import ModelError, listed, shown
from sightline.model.load import VLM, check_ids, rows_of
from sightline.model.settings import COUNTED
from sightline.prompt.tiles import heights_and_widths
from sightline.types import Encoded, ImageRef, Message


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; a temperature of 0 takes the most likely one."""

    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.75
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides the template's own."""


@dataclass
class Memory:
    """What a conversation has computed so far: token ids, images, and the keys and values of all tokens."""

    ids: list[int] = field(default_factory=list)
    images: tuple[ImageRef, ...] = ()
    cache: DynamicCache = field(default_factory=DynamicCache)

    def keep(self, encoded: Encoded, image_token_id: int, image_lengths: Sequence[int]) -> int:
        """Forget all that is not also the beginning of this prompt; return how many tokens stay.

        The last token never stays (generation starts from it), nor does a part of an image (it is computed as a whole).
        """
        ids = encoded.ids.tolist()
        same = _common(self.images, encoded.images)
        limit = min(len(ids) - 1, _place_of_image(ids, same, image_lengths, image_token_id))
        known = _common(self.ids[:limit], ids)
        while known and ids[known - 1] == ids[known] == image_token_id:
            known -= 1
        self.ids, self.images = ids[:known], encoded.images
        if (surplus := self.cache.get_seq_length() - known) > 0:
            self.cache.crop(-surplus)
        return known

    def forget(self) -> None:
        """Drop everything: after a failure nobody knows which layers hold how much."""
        self.ids, self.images, self.cache = [], (), DynamicCache()


def _common(mine: Sequence[object], theirs: Sequence[object]) -> int:
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(mine), len(theirs)))


def _place_of_image(ids: list[int], number: int, lengths: Sequence[int], image_token_id: int) -> int:
    """Where the tokens of the image of that number begin; the end of the prompt if there is none."""
    if number >= len(lengths):
        return len(ids)
    places = [at for at, token in enumerate(ids) if token == image_token_id]
    return places[sum(lengths[:number])]


def reply(
    vlm: VLM,
    messages: Sequence[Message],
    sampling: Sampling = Sampling(),
    memory: Memory | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Answer the last message piece by piece; the pieces join to the answer without blanks around it.

    `memory` spares what earlier turns of the same conversation computed. The answer ends after the token that is being
    computed when `stopped()` is true or the iterator is closed.
    """
    encoded = vlm.prompter.encode(messages)
    memory = memory if memory is not None else Memory()
    closed = threading.Event()
    stream = TextStream(vlm.prompter.tokenizer)

    def work() -> None:
        try:
            _continue(vlm, encoded, sampling, memory, stream, lambda: closed.is_set() or stopped())
            stream.pieces.put(None)
        except BaseException as error:
            memory.forget()
            stream.pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _stripped(without_stop(iter(stream), (*vlm.prompter.stop[1], *sampling.stop)))
    finally:
        closed.set()
        thread.join()


@torch.inference_mode()
def _continue(
    vlm: VLM, encoded: Encoded, sampling: Sampling, memory: Memory, stream: TextStream, stopped: Callable[[], bool]
) -> None:
    lengths = vlm.prompter.image_lengths(encoded)
    known = memory.keep(encoded, vlm.prompter.image_token_id, lengths)
    seen = int((encoded.ids[:known] == vlm.prompter.image_token_id).sum())
    old_images = next(number for number in range(len(lengths) + 1) if sum(lengths[:number]) == seen)
    new = replace(encoded, images=encoded.images[old_images:], sizes=encoded.sizes[old_images:])
    ids = torch.from_numpy(encoded.ids)[None].to(vlm.device)
    # generate() computes what the cache does not hold yet, so it gets all ids but only the pixels of the new images.
    out = generate(
        vlm,
        ids,
        torch.ones_like(ids),
        [new],
        sampling,
        past_key_values=memory.cache,
        streamer=stream,
        stopping_criteria=StoppingCriteriaList(
            [lambda ids, scores, **_: torch.full((len(ids),), stopped(), device=ids.device)]
        ),
    )
    memory.ids = out[0].tolist()[: memory.cache.get_seq_length()]


def generate(
    vlm: VLM, ids: torch.Tensor, mask: torch.Tensor, seen: Sequence[Encoded], sampling: Sampling, **more: Any
) -> torch.Tensor:
    """Go on from `ids`; the images of `seen` are those whose features are to be computed, in order."""
    # generate() fills in what we leave open from the model's generation_config.json (beams, banned n-grams ...);
    # answers must not change unseen, so it gets the same module with an empty one.
    model: Any = copy.copy(vlm.model)
    model.generation_config = GenerationConfig()
    more |= vision_inputs(vlm, seen)
    more["logits_processor"] = LogitsProcessorList([partial(_sound, vlm.model.dtype)])
    check_ids(vlm, ids)
    if strings := (*vlm.prompter.stop[1], *sampling.stop):
        ends = [*more.get("stopping_criteria", ()), _ends(vlm.prompter.tokenizer, strings)]
        more["stopping_criteria"] = StoppingCriteriaList(ends)
    out: torch.Tensor = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=_settings(vlm, sampling), **more
    )
    return out


def _ends(tokenizer: Any, strings: tuple[str, ...]) -> StopStringCriteria:
    """What ends an answer at one of these texts; ModelError where the tokenizer's words are such that none can."""
    try:
        if _largest(tokenizer) >= COUNTED["vocab_size"]:  # room is made for so many
            raise ValueError(f"it has a token of the number {_largest(tokenizer)}")
        return StopStringCriteria(tokenizer, list(strings))
    except Exception as error:  # transformers trips over odd words in every way there is
        raise ModelError(
            f"this tokenizer cannot be told to end an answer at {listed(strings)} ({shown(str(error))})"
        ) from error


@lru_cache(maxsize=4)
def _largest(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values(), default=0)


def _sound(dtype: torch.dtype, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The scores of the next token, [N, V], themselves; ModelError where there is none to be chosen by."""
    if not scores.amax(-1).isfinite().all():  # of NaN it is NaN, and the suppressed are -inf
        half = "or too large for float16: try --torch-dtype bf16 or fp32" if dtype == torch.float16 else "copy it again"
        raise ModelError(f"the model computes no numbers (NaN or infinity at token {ids.shape[1]}): damaged, {half}")
    return scores


def vision_inputs(vlm: VLM, seen: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """What the model is given of the images of these prompts; nothing where there is none."""
    inputs = {}
    if images := [image for sample in seen for image in sample.images]:
        pixels = vlm.prompter.pixels(images).to(vlm.device)
        inputs["pixel_values"] = vlm.prompter.pixel_values(pixels).to(vlm.model.dtype)
    if sizes := heights_and_widths(seen):
        inputs["image_sizes"] = torch.tensor(sizes)
    return inputs


def _settings(vlm: VLM, sampling: Sampling) -> GenerationConfig:
    ids, _ = vlm.prompter.stop
    sampled = sampling.temperature > 0
    chosen = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p} if sampled else {}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampled,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=list(ids),
        pad_token_id=vlm.prompter.pad_token_id,
        # The image token is a place, not a word; rows behind the vocabulary are padding.
        suppress_tokens=[vlm.prompter.image_token_id, *range(len(vlm.prompter.tokenizer), rows_of(vlm))],
        use_cache=True,
        **chosen,
    )


class TextStream(BaseStreamer):
    """Tokens in, text out as soon as it is certain; what transformers calls a streamer.

    Its own drops blanks at the beginning of a line and holds back text without blanks. Here, text is decoded with the
    tokens of the piece before, since a token's text depends on what precedes it; half a character waits for the other.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        """Ends with None, or with what went wrong."""
        self.ids: list[int] | None = None
        self.before, self.done = 0, 0

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:  # generate() begins with the prompt
            self.ids = []
            return
        self.ids += value.reshape(-1).tolist()
        self._pass_on(half_characters=False)

    def end(self) -> None:
        self._pass_on(half_characters=True)

    def __iter__(self) -> Iterator[str]:
        while (piece := self.pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def _pass_on(self, *, half_characters: bool) -> None:
        ids = self.ids or []
        known = decode(self.tokenizer, ids[self.before : self.done])
        text = decode(self.tokenizer, ids[self.before :])
        if len(text) > len(known) and (half_characters or not text.endswith("\N{REPLACEMENT CHARACTER}")):
            self.pieces.put(text[len(known) :])
            self.before, self.done = self.done, len(ids)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def without_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first stop string, holding back what may be the beginning of one."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [at for stop in stops if (at := held.find(stop)) >= 0]
        if ends:
            yield held[: min(ends)]
            return
        safe = len(held) - max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        if safe:
            yield held[:safe]
        held = held[safe:]
    if held:
        yield held


def _stripped(pieces: Iterator[str]) -> Iterator[str]:
    """Leave out the blanks at the beginning and at the end of a text."""
    held, begun = "", False
    for piece in pieces:
        held = held + piece if begun else (held + piece).lstrip()
        if text := held.rstrip():
            yield text
            held, begun = held[len(text) :], True
