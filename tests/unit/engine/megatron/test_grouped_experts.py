"""Grouped products of experts: the same as one expert after the other, whoever has which of them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from liver_slurm.engine.megatron import grouped_experts  # noqa: E402
from liver_slurm.engine.megatron.dense_layer import Mlp, transform  # noqa: E402
from liver_slurm.engine.megatron.grouped_experts import apply_experts  # noqa: E402

EXPERTS, CHOSEN, HIDDEN, INNER = 6, 2, 16, 8


def experts(gated: bool) -> tuple[Mlp, ...]:
    generator = torch.Generator().manual_seed(1)

    def weight(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).requires_grad_()

    rows = INNER * (2 if gated else 1)
    activation = torch.nn.functional.silu if gated else torch.nn.functional.gelu
    return tuple(
        Mlp(weight(rows, HIDDEN), None, weight(HIDDEN, INNER), gated, activation, False) for _ in range(EXPERTS)
    )


def routed(idle: int) -> tuple[Any, Any]:
    """States, and weights of all experts for each token; nobody chooses expert ``idle``."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 3, HIDDEN, generator=generator).requires_grad_()
    logits = torch.randn(12, 3, EXPERTS, generator=generator)
    logits[..., idle] = -1e9
    best, who = logits.topk(CHOSEN, -1)
    return x, torch.zeros_like(logits).scatter(-1, who, best.softmax(-1)).requires_grad_()


def one_by_one(x: Any, weights: Any, mlps: tuple[Mlp, ...]) -> Any:
    return sum(transform(x, mlp) * weights[..., number, None] for number, mlp in enumerate(mlps))


def gradients(value: Any, x: Any, weights: Any, mlps: tuple[Mlp, ...]) -> list[Any]:
    matrices = [matrix for mlp in mlps for matrix in (mlp.up, mlp.down)]
    target = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    return [value.detach(), *torch.autograd.grad((value * target).sum(), [x, weights, *matrices])]


@pytest.mark.parametrize("gated", [True, False])
def test_all_experts_at_once_are_one_after_the_other(gated: bool) -> None:
    mlps, (x, weights) = experts(gated), routed(idle=4)
    found = gradients(apply_experts(x, weights, mlps, CHOSEN, False), x, weights, mlps)
    expected = gradients(one_by_one(x, weights, mlps), x, weights, mlps)
    # a choice that is not made has no gradient here, as routing chooses by other means
    expected[2] = torch.where(weights > 0, expected[2], 0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert not any(gradient.any() for gradient in found[3 + 2 * 4 : 5 + 2 * 4]), "an expert without tokens"


def test_one_graph_has_them_all() -> None:
    mlps = tuple(mlp._replace(up=half(mlp.up), down=half(mlp.down)) for mlp in experts(True))
    x, weights = (half(each) for each in routed(idle=4))
    compiled = torch.compile(apply_experts, backend="aot_eager", fullgraph=True)
    found = gradients(compiled(x, weights, mlps, CHOSEN, False), x, weights, mlps)
    expected = gradients(apply_experts(x, weights, mlps, CHOSEN, False), x, weights, mlps)
    assert all(map(torch.equal, found, expected))


def half(x: Any) -> Any:
    return x.detach().bfloat16().requires_grad_()


@pytest.mark.parametrize("idle", [0, 4])
def test_experts_of_several_ranks_are_those_of_one(idle: int) -> None:
    mlps, (x, weights) = experts(True), routed(idle)
    whole = gradients(apply_experts(x, weights, mlps, CHOSEN, False), x, weights, mlps)
    parts = [
        apply_experts(x, weights[..., first : first + size], mlps[first : first + size], CHOSEN, True)
        for first, size in ((0, 1), (1, 3), (4, 1), (5, 1))
    ]
    for one, other in zip(gradients(sum(parts), x, weights, mlps), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_rows_of_nobody_come_into_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is rounded to zero leaves rows that no expert computes."""
    mlps, (x, weights) = experts(True), routed(idle=4)
    with torch.no_grad():
        weights[0, 0], weights[5, 1] = 0.0, 0.0
    product = torch.nn.functional.grouped_mm

    def spoilt(rows: Any, matrices: Any, offs: Any) -> Any:
        made = product(rows, matrices, offs=offs)
        if made.dim() == 2:
            made[int(offs[-1]) :] = float("nan")
        return made

    monkeypatch.setattr(grouped_experts.F, "grouped_mm", spoilt)
    found = gradients(apply_experts(x, weights, mlps, CHOSEN, False), x, weights, mlps)
    expected = gradients(one_by_one(x, weights, mlps), x, weights, mlps)
    expected[2] = torch.where(weights > 0, expected[2], 0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
