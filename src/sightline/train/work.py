"""What a step computes -> the share of the device's peak that it reaches (MFU), where that peak is known."""

from __future__ import annotations

import torch
from torch import nn

from sightline.data.collate import Batch
from sightline.errors import ModelError
from sightline.model.estimate import operations
from sightline.model.estimate_fit import peak_flops
from sightline.runtime import say


class Work:
    """Adds up the operations of a step's batches: those that the mathematics needs, frozen parts as what they are."""

    def __init__(self, model: nn.Module, peak: float | None) -> None:
        """`peak`: operations per second of the device; None where it is not known, and nothing is counted."""
        self.peak = peak
        self._done = 0.0
        if peak is not None:
            try:
                self._cost = operations(model)
            except ModelError as error:
                say(f"the log has no mfu: {error}")
                self.peak = None

    def add(self, batch: Batch) -> None:
        if self.peak is not None:
            self._done += self._cost.count(batch.sample_lengths, targets=batch.num_targets, tiles=len(batch.pixels))

    def take(self) -> float:
        """Operations since the last call."""
        done, self._done = self._done, 0.0
        return done


def peak_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second of a device, as its maker states for half precision; None where that is not known."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    return peak_flops(torch.cuda.get_device_name(device))
