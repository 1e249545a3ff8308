"""The head's loss and its gradients, beside torch's own linear layer and cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.train.head import head_loss

ROWS, WIDTH, VOCABULARY = 23, 16, 40

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def parts(*, bias: bool = True) -> Parts:
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, WIDTH).requires_grad_(), torch.randn(VOCABULARY, WIDTH).requires_grad_()
    return hidden, weight, torch.randn(VOCABULARY).requires_grad_() if bias else None


TARGETS = torch.arange(ROWS) * 7 % VOCABULARY


def theirs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return cross_entropy(linear(hidden, weight, bias).float(), TARGETS, reduction="sum")


def gradients(of: Parts) -> list[torch.Tensor]:
    return [tensor.grad for tensor in of if tensor is not None and tensor.grad is not None]


@pytest.mark.parametrize("rows", [1, 4, 22, 23, 99])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_pieces_give_what_torch_gives(rows: int, bias: bool) -> None:
    mine, wanted = parts(bias=bias), parts(bias=bias)
    loss, expected = head_loss(*mine, TARGETS, rows * VOCABULARY), theirs(*wanted)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    # The loop divides by the number of targets: a slope of its own.
    (loss / 7).backward()
    (expected / 7).backward()
    torch.testing.assert_close(gradients(mine), gradients(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learns", ["hidden", "weight", "nothing"])
def test_what_is_frozen_gets_no_gradient(learns: str) -> None:
    hidden, weight, _ = parts(bias=False)
    hidden.requires_grad_(learns == "hidden")
    weight.requires_grad_(learns == "weight")
    loss = head_loss(hidden, weight, None, TARGETS)
    torch.testing.assert_close(loss, theirs(hidden, weight, None))
    if learns == "nothing":
        assert not loss.requires_grad
        return
    loss.backward()
    assert (hidden.grad is None, weight.grad is None) == (learns != "hidden", learns != "weight")


def test_under_autocast_products_are_as_torch_makes_them() -> None:
    mine, wanted = parts(bias=False), parts(bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = head_loss(*mine, TARGETS), theirs(*wanted)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    assert [g.dtype for g in gradients(mine)] == [torch.float32] * 2
    # Both round their products to bfloat16, which has 8 bits.
    torch.testing.assert_close(gradients(mine), gradients(wanted), rtol=2**-7, atol=2**-7)


def test_float16_holds_sums_that_the_scale_makes_small() -> None:
    """Gradients are made before the loss is divided by its targets: these add up to 100,000, and 65,504 is the end."""
    hidden, weight = torch.full((4000, WIDTH), 50.0), torch.zeros(2, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss = head_loss(hidden, weight, None, torch.zeros(4000, dtype=torch.int64))
    (loss / 4000).backward()
    # A half for each of the two: 50 * (1/2 - 1) in the mean, and 50 * 1/2.
    torch.testing.assert_close(weight.grad, torch.tensor([[-25.0], [25.0]]).expand(2, WIDTH))


def test_where_nothing_learns_no_gradient_is_made() -> None:
    """Whatever could learn: the head may be as large as a gigabyte."""
    hidden, weight, bias = parts()
    made: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        loss = head_loss(hidden, weight, bias, TARGETS)
    torch.testing.assert_close(loss, theirs(hidden, weight, bias).detach())
    assert not [name for name in made if "empty_like" in name or "zeros_like" in name or "scatter" in name], made


def test_the_logits_of_one_piece_exist_at_a_time() -> None:
    rows: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.ndim == 2 and result.shape[1] == VOCABULARY:
                rows.append(len(result))
            return result

    hidden, weight, _ = parts(bias=False)
    with Watch():
        head_loss(hidden, weight, None, TARGETS, 4 * VOCABULARY).backward()
    assert set(rows) <= {4, 3, WIDTH}, rows  # WIDTH: the weight, transposed


def test_no_target_is_no_loss() -> None:
    hidden, weight, _ = parts(bias=False)
    loss = head_loss(hidden[:0], weight, None, TARGETS[:0])
    loss.backward()
    assert float(loss.detach()) == 0.0 and weight.grad is not None and not weight.grad.any()
