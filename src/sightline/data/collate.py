"""The samples of a pack -> one packed sequence with its pixels; batches prepared ahead by worker processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from sightline.data.dataset import BadRow, Dataset
from sightline.data.plan import Pack
from sightline.errors import DataError
from sightline.limits import Limits, limits, use
from sightline.prompt.tiles import heights_and_widths
from sightline.runtime import calm_tokenizers
from sightline.types import IGNORE, Encoded


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sample that could not be read during a run."""

    row: BadRow
    targets: int
    """Those that the step was to learn from it."""


@dataclass(frozen=True)
class Batch:
    """One packed sequence; attention never crosses a sample border."""

    input_ids: torch.Tensor
    """int64 [1, T]"""
    position_ids: torch.Tensor
    """int64 [1, T], starting again at 0 with each sample"""
    sample_lengths: tuple[int, ...]
    """Tokens of each sample; their sum is T."""
    predict_at: torch.Tensor
    """int64 [M]: the positions whose next token is a target"""
    target_ids: torch.Tensor
    """int64 [M]: those targets"""
    pixels: torch.Tensor
    """uint8 [I, 3, H, W] (float32 where `Prompter.pixels` says so), in the order of the image tokens"""
    image_sizes: tuple[tuple[int, int], ...] = ()
    """Height and width of each image that is cut into tiles; I counts the tiles then."""
    left_out: tuple[LeftOut, ...] = ()
    """Samples that could not be read; a grey image without a target stands for each."""

    @property
    def num_targets(self) -> int:
        return len(self.target_ids)

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> Batch:
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """What torch's DataLoader calls when it pins."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def collate(encoded: Sequence[Encoded], pixels: torch.Tensor | None, stand_in: Encoded, grey: torch.Tensor) -> Batch:
    """Put samples behind one another.

    A pack without an image gets a stand-in sample of one grey image and no target, so that the vision tower and the
    projector take part in every backward pass on every rank; it leaves the loss and all other gradients as they are.
    """
    if pixels is None:
        encoded, pixels = [*encoded, stand_in], grey
    lengths = tuple(len(sample.ids) for sample in encoded)
    labels = np.concatenate([np.append(sample.labels[1:], IGNORE) for sample in encoded])
    at = np.flatnonzero(labels != IGNORE)
    return Batch(
        input_ids=torch.from_numpy(np.concatenate([sample.ids for sample in encoded]))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        sample_lengths=lengths,
        predict_at=torch.from_numpy(at),
        target_ids=torch.from_numpy(labels[at]),
        pixels=pixels,
        image_sizes=heights_and_widths(encoded),
    )


@dataclass(frozen=True)
class PackReader(torch.utils.data.Dataset[Batch | DataError]):
    """Reads, encodes and collates a pack; what a worker process runs."""

    dataset: Dataset

    def __getitem__(self, pack: Pack) -> Batch | DataError:
        prompter = self.dataset.prompter
        encoded: list[Encoded] = []
        pixels: list[torch.Tensor] = []
        left_out: list[LeftOut] = []
        for sample in pack:
            try:
                one = self.dataset.encode(sample)
                if one.images:
                    pixels.append(prompter.pixels(one.images))
            except DataError as error:
                row = self.dataset.lost(sample, error)
                if not self.dataset.may_lose(sample):
                    # Handed over as a value: raised in a worker it would arrive wrapped in a traceback.
                    return DataError(f"{row.origin}: {row.reason}", row.kind)
                left_out.append(LeftOut(row, int(self.dataset.targets[sample])))
                # The other samples of the step, and who computes them, stay as they are.
                one = prompter.grey_prompt()
                pixels.append(prompter.grey_pixels())
            encoded.append(one)
        made = torch.cat(pixels) if pixels else None
        batch = collate(encoded, made, prompter.grey_prompt(), prompter.grey_pixels())
        return replace(batch, left_out=tuple(left_out)) if left_out else batch


def _begin(these: Limits, worker: int) -> None:
    """Of a worker process, which may have been started without its parent's memory."""
    use(these)


def batches(dataset: Dataset, packs: Iterable[Pack], *, workers: int, pin: bool = False) -> Iterator[Batch]:
    """The batches of these packs in order, prepared ahead by `workers` processes (0: in this one).

    `pin`: in pinned memory, from where an accelerator fetches them while it computes.
    """
    calm_tokenizers()
    loader: DataLoader[Any] = DataLoader(
        PackReader(dataset),
        sampler=packs,
        batch_size=None,
        num_workers=workers,
        # Else it draws a seed from torch's, and a run that goes on would drop out other values than one never cut off.
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=functools.partial(_begin, limits()),
        pin_memory=pin,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            remedy = "mended under its own name, or left out by on_bad_row: skip, the run goes on with --resume"
            raise DataError(f"{batch} ({remedy})", batch.kind)
        yield batch
