"""Four bits: the values by hand, the layers that get them, and where bitsandbytes is refused before it is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sightline.errors import MissingExtra, UserError
from sightline.model.quantize import bitsandbytes, check_widths, quantize_linear

CPU = torch.device("cpu")

NF4 = (
    -1.0,
    -0.6961928,
    -0.5250731,
    -0.3949175,
    -0.2844414,
    -0.1847734,
    -0.0910500,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
)
NF4 += (0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
"""The sixteen values of NF4 (QLoRA, arXiv 2305.14314, appendix E)."""


class Network(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(width, 64), nn.Linear(64, 32, bias=False), nn.LayerNorm(64)


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'sightline-vlm[quantize]'")


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """Each block of 64 numbers, divided by its largest, rounded to the nearest of the sixteen values."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4)
    index = (blocks[..., None] / scale[..., None] - table).abs().argmin(-1)
    return (table[index] * scale).reshape(weight.shape)


@pytest.mark.parametrize("training", [True, False])
def test_the_values_are_those_of_nf4(training: bool) -> None:
    torch.manual_seed(0)
    network = Network().train(training)
    before, bias = network.first.weight.detach().clone(), network.first.bias.detach().clone()
    quantize_linear(network, ["first"], device=CPU, dtype=torch.float32)
    x = torch.randn(3, 128, requires_grad=True)
    out = network.first(x)
    # The scales are themselves kept in 8 bits (double quantised), so the last digits are other ones.
    torch.testing.assert_close(out, x @ nearest(before).T + bias, rtol=0.02, atol=0.02)
    assert not torch.allclose(out, x @ before.T + bias, atol=0.02)
    out.sum().backward()
    torch.testing.assert_close(x.grad, nearest(before).sum(0).expand(3, -1), rtol=0.02, atol=0.05)


def test_the_layers_that_are_named_and_no_others() -> None:
    network = Network()
    second, norm = network.second, network.norm
    quantize_linear(network, ["first"], device=CPU, dtype=torch.float32)
    assert network.second is second and network.norm is norm
    weight = network.first.weight
    assert weight.dtype == torch.uint8 and weight.numel() == 128 * 64 // 2 and not weight.requires_grad
    assert {name for name, _ in network.named_parameters()} == {name for name, _ in Network().named_parameters()}


def test_answers_between_steps_leave_the_weights_alone() -> None:
    """bitsandbytes re-packs them for some CPUs at the first answer, in bfloat16, then sends no gradient any more."""
    network = Network()
    quantize_linear(network, ["first"], device=CPU, dtype=torch.float32)
    x = torch.randn(4, 128)
    network.train()
    before, bits = network.first(x).detach(), network.first.weight.detach().clone()
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network.first(x), before, rtol=1e-5, atol=1e-5)
    network.train()
    y = x.clone().requires_grad_(True)
    out = network.first(y)
    out.sum().backward()
    assert torch.equal(out.detach(), before) and torch.equal(network.first.weight, bits) and y.grad is not None


@pytest.mark.parametrize(("width", "odd"), [(96, "96"), (32, "32"), (160, "160")])
def test_widths_that_the_cpu_gets_wrong_are_refused(width: int, odd: str) -> None:
    with pytest.raises(UserError) as error:
        quantize_linear(Network(width), ["first", "second"], device=CPU, dtype=torch.float32)
    assert f"layers of width {odd};" in str(error.value) and "\n" not in str(error.value)
    check_widths([nn.Linear(width, 3)], torch.device("cuda"))  # where whole matrices are counted through


@pytest.mark.parametrize("device", ["mps", "npu"])
def test_devices_that_it_does_not_know(device: str) -> None:
    class Device:
        type = device

    with pytest.raises(UserError, match=rf"^x: bitsandbytes computes on cuda, cpu, xpu, not on {device}$"):
        bitsandbytes("x", Device())  # type: ignore[arg-type]


def test_it_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        MissingExtra,
        match=r"^x needs the package 'bitsandbytes': pip install 'sightline-vlm\[quantize\]'; in a clone: .*$",
    ):
        bitsandbytes("x", CPU)


IMPORTS = """
import sys
{before}
import torch
from sightline.model.adapters import add_lora
from sightline.model.quantize import bitsandbytes
from sightline.recipe import LoraRecipe

network = torch.nn.Sequential(torch.nn.Linear(64, 64))
add_lora(network, LoraRecipe(), ["0"], "tune.llm_lora")
bitsandbytes("x", torch.device("cpu"))
assert "bitsandbytes" in sys.modules and "peft" in sys.modules
print("kernels" in sys.modules)
"""

FETCHES = """
import types
kernels = types.ModuleType("kernels")
def get_kernel(*words, **more):
    raise SystemExit("something was fetched")
kernels.get_kernel = get_kernel
sys.modules["kernels"] = kernels
"""


@pytest.mark.parametrize(("before", "left"), [("", "False"), (FETCHES, "True")], ids=["without", "with kernels"])
def test_nothing_is_said_and_nothing_fetched(before: str, left: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTS.format(before=before)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gemm_4bit" not in done.stderr and done.stdout.strip() == left
