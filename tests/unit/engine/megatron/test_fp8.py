"""Products in FP8: close to exact ones, and the same whatever else is in a tensor, so in every layout."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.errors import LiverError
from liver_slurm.engine.megatron.fp8 import E4M3, E5M2, check_device, linear, scaled


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).bfloat16()


def distance(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).detach().float().norm() / right.detach().float().norm())


@pytest.mark.parametrize("bias", [None, made(48, seed=3)])
def test_a_linear_layer_and_its_derivatives_are_close(bias: torch.Tensor | None) -> None:
    x, weight, above = made(4, 16, 64).requires_grad_(), made(48, 64, seed=1).requires_grad_(), made(4, 16, 48, seed=2)
    ours, exact = linear(x, weight, bias, fp8=True), F.linear(x, weight, bias)
    assert 1e-3 < distance(ours, exact) < 0.05  # E4M3 rounds by up to 1/16, but it is not bf16 either
    assert torch.equal(linear(x, weight, bias, fp8=False), exact)
    for found, right in zip(
        torch.autograd.grad(ours, (x, weight), above), torch.autograd.grad(exact, (x, weight), above), strict=True
    ):
        assert found.dtype == right.dtype
        assert distance(found, right) < 0.08  # E5M2 rounds by up to 1/8


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@given(factor=st.floats(2.0**-60, 2.0**60), times=st.floats(1.0, 300.0))
def test_rounding_does_not_depend_on_what_else_is_there(dtype: torch.dtype, factor: float, times: float) -> None:
    part = (made(16, 16).float().clamp(min=0.1) * factor).bfloat16()
    whole = torch.cat((part, part * times))
    apart, together = scaled(part, dtype), scaled(whole, dtype)
    read = [each.values.float() * each.factor for each in (apart, together)]
    assert torch.equal(read[0], read[1][:16]), "of numbers that are not below the smallest normal one"


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("greatest", [0.0, 1e-45, 1e-30, 0.3, 1.0, 448.0, 57344.0, 3e38])
def test_scales_are_powers_of_two_and_use_the_range(dtype: torch.dtype, greatest: float) -> None:
    found = scaled(torch.tensor([[greatest, -greatest / 2]]), dtype)
    assert math.frexp(found.factor.item())[0] == 0.5
    assert found.values.float().abs().max() <= torch.finfo(dtype).max
    if greatest > 2.0**-100:
        assert found.values.float().abs().max() > torch.finfo(dtype).max / 2.1
        assert found.values.float()[0, 0] * found.factor == pytest.approx(greatest, rel=0.07)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["x", "weight", "above"])
def test_what_is_not_finite_stays_so(bad: float, where: str) -> None:
    """A step whose gradients are not finite is skipped, so that they must be seen."""
    parts = {"x": made(16, 32), "weight": made(48, 32, seed=1), "above": made(16, 48, seed=2)}
    parts[where][3, 4] = bad
    x, weight = parts["x"].requires_grad_(), parts["weight"].requires_grad_()
    y = linear(x, weight, None, fp8=True)
    assert y.isfinite().all() == (where == "above")
    assert not all(each.isfinite().all() for each in torch.autograd.grad(y, (x, weight), parts["above"]))


def test_older_cards_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100")
    with pytest.raises(LiverError, match=r"NVIDIA A100 .* 8\.0; use cards of 8\.9"):
        check_device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    check_device(torch.device("cuda"))
    check_device(torch.device("cpu"))
