"""Stacked matrices against torch's own Muon, which takes them one by one."""

from __future__ import annotations

import pytest
import torch

from sightline.train import muon

SHAPES = [(6, 6)] * 5 + [(12, 6)] * 3 + [(6, 12)] + [(6, 6)]


@pytest.mark.parametrize("together", [2**22, 36, 80])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_moves_as_torchs_muon(together: int, nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "_TOGETHER", together)
    torch.manual_seed(0)
    theirs = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    ours = [torch.nn.Parameter(parameter.detach().clone()) for parameter in theirs]
    settings = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = [torch.optim.Muon(theirs, **settings), muon.Muon(ours, **settings)]
    for step in range(4):
        for first, second in zip(theirs, ours, strict=True):
            first.grad = torch.randn_like(first)
            second.grad = first.grad.clone()
        if step == 2:
            theirs[3].grad = ours[3].grad = None
        for optimizer in optimizers:
            optimizer.step()
    for first, second in zip(theirs, ours, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-5)
    kept = [optimizer.state_dict() for optimizer in optimizers]
    assert kept[0]["state"].keys() == kept[1]["state"].keys()
    optimizers[0].load_state_dict(kept[1])
