"""Cross entropy over a divided vocabulary, against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.engine.megatron import loss
from liver_slurm.engine.megatron.loss import token_losses


class Alone:
    """A group of one rank."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 7), st.sampled_from((1.0, 60.0)), st.integers(0, 10**6))
def test_as_torch_in_double_precision(tokens: int, real: int, padding: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(tokens, real + padding, generator=generator)).requires_grad_()
    labels = torch.randint(0, real, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    losses = token_losses(logits, labels, real, Alone(), False)
    (losses * weights).sum().backward()
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact[:, :real], labels, reduction="none")
    (expected * weights.double()).sum().backward()
    assert losses.dtype == torch.float32
    rounding = 1e-6 + 5e-7 * float(logits.detach().abs().max())  # a few units in the last place of an fp32 logit
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=rounding)
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=rounding)
    assert not logits.grad[:, real:].any(), "rows that pad the vocabulary never train"


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 7), st.sampled_from((1e-4, 0.01, 1.0)), st.integers(0, 10**6))
def test_the_z_loss_is_in_the_gradient_and_not_in_the_value(real: int, padding: int, z_loss: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (3.0 * torch.randn(3, real + padding, generator=generator)).requires_grad_()
    labels = torch.randint(0, real, (3,), generator=generator)
    weights = torch.rand(3, generator=generator)
    losses = token_losses(logits, labels, real, Alone(), False, z_loss)
    (losses * weights).sum().backward()
    assert torch.equal(losses, token_losses(logits, labels, real, Alone(), False))
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact[:, :real], labels, reduction="none") + z_loss * exact[:, :real].logsumexp(-1) ** 2
    (expected * weights.double()).sum().backward()
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    assert not logits.grad[:, real:].any()


def test_the_gradient_has_the_dtype_of_the_logits() -> None:
    logits = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    token_losses(logits, torch.tensor([0, 1, 7]), 8, Alone(), False).sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("place", [0, 1])
def test_whatever_lies_in_the_padding_is_not_seen(place: int) -> None:
    logits = torch.randn(2, 6)
    logits[:, 4 + place] = float("inf")
    expected = F.cross_entropy(logits[:, :4], torch.tensor([1, 3]), reduction="none")
    torch.testing.assert_close(token_losses(logits, torch.tensor([1, 3]), 4, Alone(), False), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 10**6))
def test_ranks_together_find_what_one_finds(size: int, tp: int, seed: int) -> None:
    """Also where a rank holds nothing but padding, as the last ones may of a small vocabulary."""
    rows = 32 // tp
    logits = torch.randn(3, rows * tp, generator=torch.Generator().manual_seed(seed))
    size = min(size, rows * tp)
    labels = torch.tensor([0, size - 1, size // 2])
    parts = [
        (logits[:, r * rows : (r + 1) * rows], labels - r * rows, min(max(size - r * rows, 0), rows)) for r in range(tp)
    ]
    largest = torch.stack([loss._largest(part, real) for part, _, real in parts]).amax(0)
    sums = sum(loss._sums(part, own, largest, real) for part, own, real in parts)
    found = sums[0].log() + largest - sums[1]
    torch.testing.assert_close(found, F.cross_entropy(logits[:, :size], labels, reduction="none"))
