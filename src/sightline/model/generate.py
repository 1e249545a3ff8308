"""Messages -> an answer: streamed for one conversation with its key-value cache kept, or batched for many."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer

from sightline.model.load import VLM
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

    def keep(self, encoded: Encoded, image_token_id: int) -> int:
        """Forget all that is not also the beginning of this prompt; return how many tokens stay.

        The last token never stays (generation starts from it), nor does a part of an image (it is computed as a whole).
        """
        ids = encoded.ids.tolist()
        same = _common(self.images, encoded.images)
        limit = min(len(ids) - 1, _place_of_image(ids, same, len(encoded.images), image_token_id))
        known = _common(self.ids[:limit], ids)
        while known and ids[known - 1] == ids[known] == image_token_id:
            known -= 1
        self.ids, self.images = ids[:known], encoded.images
        if (surplus := self.cache.get_seq_length() - known) > 0:
            self.cache.crop(-surplus)
        return known


def _common(mine: Sequence[object], theirs: Sequence[object]) -> int:
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(mine), len(theirs)))


def _place_of_image(ids: list[int], number: int, images: int, image_token_id: int) -> int:
    """Where the tokens of the image of that number begin; the end of the prompt if there is none."""
    if number >= images:
        return len(ids)
    places = [at for at, token in enumerate(ids) if token == image_token_id]
    return places[number * (len(places) // images)]


def reply(
    vlm: VLM, messages: Sequence[Message], sampling: Sampling = Sampling(), memory: Memory | None = None
) -> Iterator[str]:
    """Answer the last message piece by piece; `memory` spares what earlier turns of the same conversation computed."""
    encoded = vlm.prompter.encode(messages)
    memory = memory if memory is not None else Memory()
    streamer = TextIteratorStreamer(vlm.prompter.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=None)
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            _continue(vlm, encoded, sampling, memory, streamer)
        except BaseException as error:
            failures.put(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from _without_stop(streamer, (*vlm.prompter.stop[1], *sampling.stop))
    thread.join()
    if not failures.empty():
        raise failures.get()


def replies(
    vlm: VLM,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str] = (),
    on_done: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer many conversations greedily, in batches of similar length; answers come in the order of the questions."""
    sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(stop))
    encoded = [vlm.prompter.encode(messages) for messages in conversations]
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number].ids))
    answers = [""] * len(encoded)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        for number, answer in zip(members, _batch(vlm, [encoded[n] for n in members], sampling), strict=True):
            answers[number] = answer
        if on_done is not None:
            on_done(len(members))
    return answers


@torch.inference_mode()
def _continue(vlm: VLM, encoded: Encoded, sampling: Sampling, memory: Memory, streamer: TextIteratorStreamer) -> None:
    ids = encoded.ids.tolist()
    known = memory.keep(encoded, vlm.prompter.image_token_id)
    _prefill(vlm, encoded, known, memory)
    out = vlm.model.generate(
        input_ids=torch.tensor([ids], device=vlm.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=vlm.device),
        past_key_values=memory.cache,
        streamer=streamer,
        **_settings(vlm, sampling),
    )
    memory.ids = out[0].tolist()[: memory.cache.get_seq_length()]


def _prefill(vlm: VLM, encoded: Encoded, known: int, memory: Memory) -> None:
    """Run the model over the new part of a prompt, all but its last token."""
    new = torch.from_numpy(encoded.ids[known:-1]).to(vlm.device)
    if not len(new):
        return
    image_tokens = int((new == vlm.prompter.image_token_id).sum())
    images = image_tokens // vlm.prompter.tokens_per_image
    pixels = vlm.prompter.pixels(encoded.images[len(encoded.images) - images :]) if images else None
    vlm.model(
        input_ids=new[None],
        pixel_values=None if pixels is None else pixels.to(vlm.device, vlm.model.dtype),
        past_key_values=memory.cache,
        position_ids=torch.arange(known, known + len(new), device=vlm.device)[None],
        use_cache=True,
        logits_to_keep=1,
    )
    memory.ids += new.tolist()


@torch.inference_mode()
def _batch(vlm: VLM, encoded: Sequence[Encoded], sampling: Sampling) -> list[str]:
    longest = max(len(sample.ids) for sample in encoded)
    ids = torch.full((len(encoded), longest), vlm.prompter.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(encoded):
        ids[row, longest - len(sample.ids) :] = torch.from_numpy(sample.ids)
        mask[row, longest - len(sample.ids) :] = 1
    images = [image for sample in encoded for image in sample.images]
    pixels = vlm.prompter.pixels(images).to(vlm.device, vlm.model.dtype) if images else None
    out = vlm.model.generate(
        input_ids=ids.to(vlm.device),
        attention_mask=mask.to(vlm.device),
        pixel_values=pixels,
        **_settings(vlm, sampling),
    )
    texts = vlm.prompter.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    stops = (*vlm.prompter.stop[1], *sampling.stop)
    return ["".join(_without_stop([text], stops)).strip() for text in texts]


def _settings(vlm: VLM, sampling: Sampling) -> dict[str, Any]:
    ids, strings = vlm.prompter.stop
    strings = (*strings, *sampling.stop)
    sampled = sampling.temperature > 0
    chosen = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p} if sampled else {}
    # A configuration of our own: what a model's generation_config.json holds must not change answers unseen.
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampled,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=list(ids),
        pad_token_id=vlm.prompter.pad_token_id,
        # The image token is a place, not a word; rows behind the vocabulary are padding.
        suppress_tokens=[vlm.prompter.image_token_id, *range(len(vlm.prompter.tokenizer), _rows(vlm))],
        use_cache=True,
        **chosen,
    )
    extra = {"stop_strings": list(strings), "tokenizer": vlm.prompter.tokenizer} if strings else {}
    return {"generation_config": config, **extra}


def _rows(vlm: VLM) -> int:
    return int(vlm.model.get_input_embeddings().weight.shape[0])


def _without_stop(pieces: Iterator[str] | Sequence[str] | TextIteratorStreamer, stops: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first stop string, holding back what may be the beginning of one."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [at for stop in stops if (at := held.find(stop)) >= 0]
        if ends:
            yield held[: min(ends)]
            # The producer is drained so that its thread can finish.
            for _ in pieces if not isinstance(pieces, (list, tuple)) else ():
                pass
            return
        safe = len(held) - max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        if safe:
            yield held[:safe]
        held = held[safe:]
    if held:
        yield held
