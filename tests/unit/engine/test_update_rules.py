"""An update of boxes is bitwise the optimizer's of the whole tensor, wherever the boxes are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.config.train import TrainSection
from liver_slurm.engine import update_rules
from liver_slurm.engine.megatron.optimizer import OptimizerState
from liver_slurm.engine.megatron.rounded import RoundedMoments, hyperparameters
from liver_slurm.engine.replica import Hyperparameters
from liver_slurm.engine.update_rules import update
from liver_slurm.reshard.tensors import moments_of
from liver_slurm.transfer.checksum import digests

PLAIN_ADAM = TrainSection()


class Rank:
    """One tensor as a rank of the source or the target world holds it, with a torch optimizer where it trains."""

    def __init__(self, values: torch.Tensor, train: TrainSection = PLAIN_ADAM, balance_rate: float = 0.0) -> None:
        self.parameter = torch.nn.Parameter(values.clone())
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [self.parameter], lr=3e-3, weight_decay=0.1, foreach=False
        )
        if train.optimizer == "sgd":
            self.optimizer = torch.optim.SGD([self.parameter], lr=3e-3, weight_decay=0.1, momentum=0.8, foreach=False)
        if train.moments_precision == "bf16":
            self.optimizer = RoundedMoments(self.optimizer, train.optimizer)
        state = OptimizerState(self.optimizer)
        self.optimizer.param_groups[0]["lr_mult"] = 0.0 if balance_rate else 1.0
        state.seed(torch.zeros_like, train.ema_decay, balance_rate)
        state.begin_averages()
        self.state, self.moments = self.optimizer.state[self.parameter], moments_of(train)

    @property
    def all_state(self) -> tuple[torch.Tensor, ...]:
        return self.parameter.detach(), *(self.state[name] for name in self.moments)

    def train(self, gradient: torch.Tensor, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.parameter.grad = gradient
        self.optimizer.step()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 1 << 30),
    updates=st.integers(1, 5),
    block=st.sampled_from([1, 7, 64, update_rules._BLOCK]),
    train=st.builds(
        TrainSection,
        optimizer=st.sampled_from(["adam", "sgd"]),
        moments_precision=st.sampled_from(["fp32", "bf16"]),
        ema_decay=st.sampled_from([0, 0.3, 0.99]),
    ),
)
def test_boxes_follow_bit_for_bit(
    rows: int, columns: int, cut: tuple[float, float], seed: int, updates: int, block: int, train: TrainSection
) -> None:
    # LS-3
    random = torch.Generator().manual_seed(seed)
    source = Rank(torch.randn(rows, columns, generator=random), train)
    values = Hyperparameters(0.0, 0.1, 0.9, 0.999, 1e-8, ema_decay=train.ema_decay)
    if train.optimizer == "sgd":
        values = Hyperparameters(0.0, 0.1, momentum=0.8, ema_decay=train.ema_decay)
    source.train(torch.randn(rows, columns, generator=random), 1e-3)  # moments that are not zero
    kept = tuple(state.clone() for state in source.all_state)
    row, column = int(cut[0] * rows), int(cut[1] * columns)
    places = [
        (slice(0, row), slice(0, column)),
        (slice(0, row), slice(column, columns)),
        (slice(row, rows), slice(0, columns)),
    ]
    for made in range(1, 1 + updates):
        gradient, lr = torch.randn(rows, columns, generator=random), 1e-3 / made
        boxes = [tuple(view[place] for view in (*kept, gradient)) for place in places]
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(update_rules, "_BLOCK", block)
            update([box for box in boxes if box[0].numel()], made, values._replace(lr=lr), source.moments)
        source.train(gradient, lr)
    assert all(torch.equal(*pair) for pair in zip(source.all_state, kept, strict=True))


@pytest.mark.parametrize("kind", ["adam", "sgd", "rounded"])
def test_biases_of_experts_follow_bit_for_bit(kind: str) -> None:
    """By the sign of what more than the mean went to an expert, and by nothing else; averages follow them."""
    # LS-3
    precision: Literal["fp32", "bf16"] = "bf16" if kind == "rounded" else "fp32"
    optimizer: Literal["adam", "sgd"] = "sgd" if kind == "sgd" else "adam"
    train = TrainSection(optimizer=optimizer, moments_precision=precision, ema_decay=0.5)
    source = Rank(torch.zeros(9), train, balance_rate=0.125)
    kept = tuple(state.clone() for state in source.all_state)
    expected, average = torch.zeros(9), torch.zeros(9)
    values = hyperparameters(source.optimizer.param_groups[0])._replace(lr=0.0)
    assert values.balance_rate == 0.125
    for made in range(4):
        excess = (torch.arange(9) - 4.0 + made).roll(made) * 1e-3
        with torch.no_grad():
            for part in (slice(0, 2), slice(2, 9)):
                update([tuple(view[part] for view in (*kept, excess))], made, values, source.moments)
        source.train(excess, 0.0)
        expected = expected - 0.125 * excess.sign()
        average = average.lerp(expected, 0.5)
    assert torch.equal(source.parameter.detach(), expected)
    assert torch.equal(source.state["ema"], average)
    assert all(torch.equal(*pair) for pair in zip(source.all_state, kept, strict=True))


def test_a_wrong_rate_shows() -> None:
    source = Rank(torch.ones(2, 3))
    kept = tuple(state.clone() for state in source.all_state)
    gradient = torch.full((2, 3), 0.5)
    source.train(gradient, 1e-3)
    with torch.no_grad():
        update([(*kept, gradient)], 0, Hyperparameters(1e-3 * (1 + 1e-4), 0.1, 0.9, 0.999, 1e-8))
    assert digests(source.all_state) != digests(kept)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_rounded_moments_are_the_wide_ones_to_the_nearest(kind: str) -> None:
    """Of one update, from the same moments: the master is what it would be; only what is kept of them is rounded."""
    values = torch.randn(300, 7, generator=torch.Generator().manual_seed(3))
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    wide, rounded = (Rank(values, TrainSection(optimizer=kind, moments_precision=one)) for one in precisions)  # type: ignore[arg-type]
    for made in range(4):
        gradient = torch.randn(values.shape, generator=torch.Generator().manual_seed(made))
        for name in wide.moments:
            assert rounded.state[name].dtype == torch.bfloat16
            wide.state[name].copy_(rounded.state[name])
        for rank in (wide, rounded):
            rank.train(gradient, 1e-2)
        assert torch.equal(wide.parameter, rounded.parameter)
        for name in wide.moments:
            assert torch.equal(wide.state[name].bfloat16(), rounded.state[name])


def test_what_is_widened_at_a_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    widened: list[int] = []

    def seen(members: Sequence[update_rules.Updated], *_: object) -> None:
        widened.append(sum(box[0].numel() for box in members))

    monkeypatch.setattr(update_rules, "_update", seen)
    monkeypatch.setattr(update_rules, "_BLOCK", 100)
    shapes = ((30, 7), (5,), (3, 250))
    update([tuple(torch.zeros(shape) for _ in range(4)) for shape in shapes], 0, Hyperparameters(0.0, 0.0))
    assert max(widened) <= 100
    assert sum(widened) == sum(math.prod(shape) for shape in shapes)
