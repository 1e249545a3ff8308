"""Layers that torch compiles: the same losses, and no new code for packs of other lengths."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
import torch
from test_loop import losses
from torch._dynamo.testing import CompileCounter


@pytest.mark.parametrize("recomputed", ["false", "true"], ids=["kept", "recomputed"])
def test_it_is_the_same_run(trained: Any, monkeypatch: pytest.MonkeyPatch, recomputed: str) -> None:
    changes = ["tune.llm=lora", "optim.max_steps=4", f"engine.gradient_checkpointing={recomputed}"]
    plain = losses(trained(*changes, name="plain"))
    counter, frames = CompileCounter(), []
    # What a compiler would make of the graphs differs from machine to machine; that they are found is what counts.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=counter))
    torch._dynamo.reset()
    compiled = trained(
        *changes, "engine.compile=true", name="compiled", after_step=lambda *_: frames.append(counter.frame_count)
    )
    assert losses(compiled) == pytest.approx(plain, rel=1e-6)
    assert frames[0] > 0 and frames[-1] == frames[0], frames
