"""Lengths and a seed -> which samples make which step, and how a step is cut into packs for each rank.

A step is a pure function of (data, seed, step number). Ranks, packs and workers only decide who computes what.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Pack = tuple[int, ...]
"""Samples that share one sequence; empty for a rank that has nothing to do in this turn."""


@dataclass(frozen=True)
class Plan:
    """All steps of a run."""

    tokens: np.ndarray
    """int64 [N]: length of each sample."""
    global_batch: int
    epochs: float
    seed: int
    max_steps: int | None = None
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.tokens) // self.global_batch)

    @property
    def num_steps(self) -> int:
        planned = max(1, round(self.steps_per_epoch * self.epochs))
        return min(planned, self.max_steps) if self.max_steps is not None else planned

    def samples(self, step: int) -> np.ndarray:
        """The samples of a step; within an epoch each one comes once, so its last step may be smaller."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[within * self.global_batch : (within + 1) * self.global_batch]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # Who prepares batches is ahead of who trains on them, perhaps in the next epoch; nobody goes back.
            self._orders.pop(epoch - 2, None)
            order = np.arange(len(self.tokens))
            if self.shuffle:
                order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.tokens))
            self._orders[epoch] = order
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def packs(self, step: int, *, rank: int, world: int, budget: int) -> list[Pack]:
        """The packs of one rank for a step; equally many on every rank.

        A pack holds at most `budget` tokens, except a single sample that is longer on its own.
        """
        packs = pack(self.samples(step), self.tokens, budget)
        missing = -len(packs) % world
        packs = _split(packs, missing, self.tokens)
        # Heaviest first and back again over the ranks, so that the ranks' sums stay close.
        packs.sort(key=lambda pack: -int(self.tokens[list(pack)].sum()))
        turns = [packs[start : start + world] for start in range(0, len(packs), world)]
        return [turn[rank] if number % 2 == 0 else turn[world - 1 - rank] for number, turn in enumerate(turns)]


def pack(samples: np.ndarray, tokens: np.ndarray, budget: int) -> list[Pack]:
    """Put samples into as few packs as first-fit-decreasing finds; the longest first."""
    packs: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(samples.tolist(), key=lambda sample: (-int(tokens[sample]), sample)):
        length = int(tokens[sample])
        for number, free in enumerate(room):
            if length <= free:
                packs[number].append(sample)
                room[number] -= length
                break
        else:
            packs.append([sample])
            room.append(budget - length)
    return [tuple(members) for members in packs]


def _split(packs: list[Pack], more: int, tokens: np.ndarray) -> list[Pack]:
    """Cut the fullest packs in two until there are `more` of them; empty ones where nothing can be cut."""
    packs = list(packs)
    for _ in range(more):
        candidates = [pack for pack in packs if len(pack) > 1]
        if not candidates:
            packs.append(())
            continue
        fullest = max(candidates, key=lambda pack: int(tokens[list(pack)].sum()))
        packs.remove(fullest)
        packs += [fullest[::2], fullest[1::2]]
    return packs
