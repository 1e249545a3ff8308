"""Noise on the embeddings of text while training (NEFTune, arXiv 2310.05914)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sightline.data.collate import Batch
from sightline.model.load import VLM


@contextmanager
def noisy_embeddings(
    vlm: VLM, batch: Batch, samples: Sequence[int], alpha: float | None, *, seed: int, step: int
) -> Iterator[None]:
    """Inside, the embeddings of text tokens are moved by up to alpha / sqrt(L d) each; none where alpha is None.

    L counts the text tokens of the sample and d is the width, as in the paper, whose samples are text alone. The noise
    is drawn from (seed, step, sample), so that it does not depend on how a step is cut into packs.
    """
    if alpha is None:
        yield
        return
    is_text = (batch.input_ids[0] != vlm.prompter.image_token_id).split(list(batch.sample_lengths))
    # A stand-in image, which may come behind the samples, has no text.
    counts = [int(text.sum()) for text in is_text[: len(samples)]]

    def shake(_: Any, inputs: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
        noise = torch.zeros(embedded.shape[1:], device=embedded.device)
        pieces = noise.split(list(batch.sample_lengths))
        for piece, text, sample, count in zip(pieces, is_text, samples, counts, strict=False):
            if not count:
                continue  # a grey image in the place of a sample that could not be read
            drawn = np.random.SeedSequence([seed, step, sample]).generate_state(1, np.uint64)[0]
            generator = torch.Generator(embedded.device).manual_seed(int(drawn >> 1))
            most = alpha / (count * embedded.shape[2]) ** 0.5
            width = (count, embedded.shape[2])
            piece[text.to(embedded.device)] = (
                torch.rand(width, generator=generator, device=embedded.device) * 2 - 1
            ) * most
        return embedded + noise.to(embedded.dtype)

    hook = vlm.model.get_input_embeddings().register_forward_hook(shake)
    try:
        yield
    finally:
        hook.remove()
