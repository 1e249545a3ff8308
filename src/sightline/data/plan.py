"""Lengths and a seed -> which samples make which step, and how a step is cut into packs for each rank.

A step is a pure function of (data, seed, step number). Ranks, packs and workers only decide who computes what.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from heapq import heapreplace

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
    width: int | None = None
    """Of the language model: ranks get the same work, of which attention is a part; None: the same number of tokens."""

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
        shares = _shares(self.samples(step), self._costs, world)
        of_ranks = [pack(share, self.tokens, budget) for share in shares]
        own = of_ranks[rank]
        own = _split(own, max(map(len, of_ranks)) - len(own), self.tokens)
        return sorted(own, key=lambda pack: -int(self.tokens[list(pack)].sum()))

    @cached_property
    def _costs(self) -> np.ndarray:
        """Of each sample, in tokens: attention adds its length over 12 widths to what the matrices of a layer cost.

        A token meets 12 width² weights of a layer, and with two products of that width half of the sample's tokens.
        """
        return self.tokens * (1 + self.tokens / (12 * self.width)) if self.width else self.tokens.astype(float)


def _shares(samples: np.ndarray, costs: np.ndarray, world: int) -> list[np.ndarray]:
    """The samples of each rank: the dearest first, each to the rank that has least so far.

    All ranks wait for the last one at the end of a step, however its samples are packed.
    """
    members: list[list[int]] = [[] for _ in range(world)]
    heap = [(0.0, 0, rank) for rank in range(world)]  # what each has: costs, samples
    for sample in sorted(samples.tolist(), key=lambda sample: (-float(costs[sample]), sample)):
        cost, count, rank = heap[0]
        members[rank].append(sample)
        heapreplace(heap, (cost + float(costs[sample]), count + 1, rank))
    return [np.array(share, dtype=np.int64) for share in members]


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
