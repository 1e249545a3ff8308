"""Many conversations -> their answers: in batches of similar length, and what several have in common is computed once.

Benchmarks ask several questions about a picture, and the same question with its options in another order. Their
prompts begin alike, with the picture: it is encoded once, and the keys and values of all tokens up to the first
difference serve all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from sightline.model.generate import Sampling, decode, generate, vision_inputs, without_stop
from sightline.model.load import VLM
from sightline.types import Encoded, Message


@dataclass(frozen=True)
class Group:
    """Prompts that begin alike."""

    members: tuple[int, ...]
    """Their numbers."""
    shared: int
    """Tokens that all begin with, all images among them; 0: none are computed before the others."""


def replies(
    vlm: VLM,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str] = (),
    on_done: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer many conversations greedily; answers come in the order of the questions."""
    sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(stop))
    encoded = [vlm.prompter.encode(messages) for messages in conversations]
    answers = [""] * len(encoded)
    for batch in _batches(encoded, vlm.prompter.image_token_id, batch_size):
        numbers = [number for group in batch for number in group.members]
        for number, answer in zip(numbers, _answers(vlm, encoded, batch, sampling), strict=True):
            answers[number] = answer
        if on_done is not None:
            on_done(len(numbers))
    return answers


def _batches(encoded: Sequence[Encoded], image_token_id: int, batch_size: int) -> list[list[Group]]:
    """Groups that share with groups that share, others with others; the longest prompts first, so that memory that is
    too small shows at once."""
    groups = _groups(encoded, image_token_id, batch_size)
    groups.sort(key=lambda group: (group.shared == 0, -max(len(encoded[number].ids) for number in group.members)))
    batches: list[list[Group]] = []
    rows = batch_size
    for group in groups:
        alike = batches and bool(batches[-1][0].shared) == bool(group.shared)
        if not alike or rows + len(group.members) > batch_size:
            batches.append([])
            rows = 0
        batches[-1].append(group)
        rows += len(group.members)
    return batches


def _groups(encoded: Sequence[Encoded], image_token_id: int, batch_size: int) -> list[Group]:
    alone, together = [], defaultdict(list)
    for number, sample in enumerate(encoded):
        if sample.images:
            together[sample.images].append(number)
        else:
            alone.append(number)
    groups = []
    for members in together.values():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            shared = _shared([encoded[number].ids for number in part], image_token_id) if len(part) > 1 else 0
            if shared:
                groups.append(Group(tuple(part), shared))
            else:
                alone += part
    return groups + [Group((number,), 0) for number in alone]


def _shared(prompts: Sequence[np.ndarray], image_token_id: int) -> int:
    """How many tokens all begin with, at least one less than the shortest has; 0 where an image is not among them."""
    limit = min(map(len, prompts)) - 1
    differs = np.any([prompt[:limit] != prompts[0][:limit] for prompt in prompts], axis=0)
    shared = int(differs.argmax()) if differs.any() else limit
    return 0 if any((prompt[shared:] == image_token_id).any() for prompt in prompts) else shared


@torch.inference_mode()
def _answers(vlm: VLM, encoded: Sequence[Encoded], batch: Sequence[Group], sampling: Sampling) -> list[str]:
    members = [(group, encoded[number]) for group in batch for number in group.members]
    ids, mask = _padded([sample.ids[group.shared :] for group, sample in members], vlm)
    seen = [sample for _, sample in members]
    cache = None
    if batch[0].shared:
        first = [encoded[group.members[0]] for group in batch]
        before, before_mask = _padded([s.ids[: g.shared] for g, s in zip(batch, first, strict=True)], vlm)
        rows = torch.tensor([at for at, group in enumerate(batch) for _ in group.members], device=vlm.device)
        cache = _computed(vlm, before, before_mask, first, rows)
        ids, mask = torch.cat((before[rows], ids), 1), torch.cat((before_mask[rows], mask), 1)
        seen = []
    out = generate(vlm, ids, mask, seen, sampling, **({} if cache is None else {"past_key_values": cache}))
    texts = [decode(vlm.prompter.tokenizer, row) for row in out[:, ids.shape[1] :].tolist()]
    stops = (*vlm.prompter.stop[1], *sampling.stop)
    return ["".join(without_stop(iter([text]), stops)).strip() for text in texts]


def _padded(prompts: Sequence[np.ndarray], vlm: VLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [N, T]; the tokens are at the end."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), vlm.prompter.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(vlm.device), mask.to(vlm.device)


def _computed(
    vlm: VLM, ids: torch.Tensor, mask: torch.Tensor, seen: Sequence[Encoded], rows: torch.Tensor
) -> DynamicCache:
    """The keys and values of the beginnings, [N, T], for each of the `rows` that go on from one of them."""
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    vlm.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **vision_inputs(vlm, seen),
    )
    cache.batch_select_indices(rows)
    return cache
