"""Who holds the model while it learns: backward, step and sums over ranks, through Accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object

from sightline.data.collate import Batch
from sightline.devices import Wishes
from sightline.model.attention import compile_layers
from sightline.model.estimate import layers_of
from sightline.model.load import VLM
from sightline.model.tune import Group, settle
from sightline.recipe import Recipe
from sightline.runtime import pick, world_size
from sightline.train.head import PIECE, PIECE_ON_CPU
from sightline.train.loss import PackedLoss
from sightline.train.optim import make_optimizer
from sightline.train.recompute import recompute

T = TypeVar("T")


def meet(device: torch.device) -> None:
    """Let the processes of a run know of one another, where torchrun (or another launcher) has started several."""
    if world_size() > 1:
        PartialState(cpu=device.type == "cpu")


class Engine:
    """The model, its optimiser and the device."""

    def __init__(self, vlm: VLM, groups: Sequence[Group], recipe: Recipe, *, recomputed: int = 0) -> None:
        """`recomputed`: in how many layers of the language model activations are computed twice instead of kept."""
        self.choice = pick(Wishes(device=recipe.engine.device, dtype=recipe.engine.dtype, training=True))
        device, dtype = torch.device(self.choice.device), getattr(torch, self.choice.dtype)
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
        # What Accelerate remembers of an earlier run in this process: another number format would be refused.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        self.vlm = vlm
        self.groups = groups
        self.clip = recipe.optim.clip_grad
        settle(vlm.model, dtype, pure=recipe.engine.pure_bf16)
        llm = vlm.model.model.language_model
        recompute(llm, recomputed)
        self.compiled = recipe.engine.compile
        if self.compiled:
            compile_layers(layers_of(llm, llm.config))
        piece = PIECE_ON_CPU if device.type == "cpu" else PIECE
        module = PackedLoss(vlm.model, piece=piece).to(self.accelerator.device)
        module.train()
        optimizer = make_optimizer(groups, recipe.optim, fused=self.choice.fused_adamw)
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    @property
    def scales(self) -> bool:
        """Whether gradients overflow now and then by design: the scale of float16 is found by trying."""
        return self.accelerator.scaler is not None

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        """The sum of a batch's cross-entropies on this rank."""
        batch = batch.to(self.device)
        result: torch.Tensor = self.module(batch, self.vlm.prompter.pixel_values(batch.pixels))
        return result

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged between ranks in the last backward pass of a step only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.module):
                yield

    def backward(self, loss: torch.Tensor) -> None:
        # Data parallelism averages gradients over ranks; ours are shares of one sum.
        self.accelerator.backward(loss * self.world)

    def rescale(self, factor: float) -> None:
        """Multiply the gradients of a step by a number."""
        for parameter in (p for group in self.groups for p in group.parameters if p.grad is not None):
            assert parameter.grad is not None
            parameter.grad.mul_(factor)

    def step(self) -> float | None:
        """Clip, update, clear; returns the norm of the gradient before clipping, where the engine tells it."""
        parameters = [p for group in self.groups for p in group.parameters]
        norm = self.accelerator.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm) if norm is not None else None

    def wait(self) -> None:
        """Until all ranks have come here."""
        self.accelerator.wait_for_everyone()

    @contextmanager
    def answering(self) -> Iterator[VLM]:
        """The model as it answers between two steps: nothing drops out, in the precision of training."""
        self.module.eval()
        try:
            plain = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
            with plain, self.accelerator.autocast():
                yield self.vlm
        finally:
            self.module.train()

    def gather(self, values: list[T]) -> list[T]:
        """The values of all ranks, on each of them."""
        return list(gather_object(values)) if self.world > 1 else values

    def sum(self, value: float) -> float:
        """A number added up over ranks."""
        if self.world == 1:
            return value
        dtype = getattr(torch, self.choice.sums)
        return float(self.accelerator.reduce(torch.tensor(value, dtype=dtype, device=self.device), "sum"))
