"""Replaying Adam's update on boxes is bitwise the update of the whole tensor, wherever the boxes are cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Hyperparameters, Replica, TrainedBox
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer import optimizer_replay
from liver_slurm.transfer.optimizer_replay import Index, Trained, decode_groups, digests, encode_groups

PLAIN, UNDECAYED = GroupSpec(), GroupSpec(wd_mult=0.0)


class Rank:
    """One tensor as a rank of the source or the target world holds it, with a torch optimizer where it trains."""

    def __init__(self, values: torch.Tensor) -> None:
        self.parameter = torch.nn.Parameter(values.clone())
        self.optimizer = torch.optim.AdamW([self.parameter], lr=3e-3, weight_decay=0.1, foreach=False)
        self.state = self.optimizer.state[self.parameter]
        self.state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(values), exp_avg_sq=torch.zeros_like(values))

    def replica(self, group: GroupSpec = PLAIN) -> Replica:
        shape = tuple(self.parameter.shape)
        box = TrainedBox(
            Piece("w", (0, 0), shape),
            self.parameter.detach(),
            self.state["exp_avg"],
            self.state["exp_avg_sq"],
            lambda: self.parameter.grad,
            group,
        )
        return Replica([box], [])

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
    block=st.sampled_from([1, 7, 64, optimizer_replay._BLOCK]),
)
def test_boxes_follow_bit_for_bit(
    rows: int, columns: int, cut: tuple[float, float], seed: int, updates: int, block: int
) -> None:
    # LS-3
    random = torch.Generator().manual_seed(seed)
    source = Rank(torch.randn(rows, columns, generator=random))
    source.train(torch.randn(rows, columns, generator=random), 1e-3)  # moments that are not zero
    target = Rank(torch.full((rows, columns), 7.0))
    row, column = int(cut[0] * rows), int(cut[1] * columns)
    boxes = [
        Piece("w@master", offset, shape)
        for offset, shape in (
            ((0, 0), (row, column)),
            ((0, column), (row, columns - column)),
            ((row, 0), (rows - row, columns)),
        )
        if shape[0] * shape[1]
    ]
    sent, kept = Index(source.replica()).content(boxes), Index(target.replica()).content(boxes)
    assert isinstance(sent, Trained)
    assert isinstance(kept, Trained)
    buffer = torch.empty(sent.nbytes, dtype=torch.uint8)
    with torch.no_grad():
        sent.pack(buffer)
        kept.unpack(buffer)
    for update in range(updates):
        gradient, lr = torch.randn(rows, columns, generator=random), 1e-3 / (update + 1)
        source.parameter.grad = gradient
        gradients = torch.empty(sent.gradient_bytes, dtype=torch.uint8)
        sent.pack_gradients(gradients)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer_replay, "_BLOCK", block)
            kept.replay(gradients, 1 + update, {PLAIN: Hyperparameters(lr, 0.1, 0.9, 0.999, 1e-8)})
        source.train(gradient, lr)
    for mine, theirs in zip(source.replica().trained[0].state, target.replica().trained[0].state, strict=True):
        assert torch.equal(mine, theirs)
    assert digests([sent]) == digests([kept])


def test_a_wrong_rate_shows_in_the_digests() -> None:
    source, target = Rank(torch.ones(2, 3)), Rank(torch.ones(2, 3))
    boxes = [Piece("w@master", (0, 0), (2, 3))]
    sent, kept = Index(source.replica()).content(boxes), Index(target.replica()).content(boxes)
    assert isinstance(kept, Trained)
    gradient = torch.full((2, 3), 0.5)
    source.train(gradient, 1e-3)
    wrong = {PLAIN: Hyperparameters(1e-3 * (1 + 1e-4), 0.1, 0.9, 0.999, 1e-8)}
    with torch.no_grad():
        kept.replay(gradient.view(-1).view(torch.uint8), 0, wrong)
    assert digests([sent]) != digests([kept])


def test_what_is_not_there_is_named() -> None:
    rank = Rank(torch.ones(2, 3))
    with pytest.raises(TransferError, match=r"w@master: the box at \(1, 0\) of shape \(2, 3\) is not held here"):
        Index(rank.replica()).content([Piece("w@master", (1, 0), (2, 3))])
    content = Index(rank.replica(UNDECAYED)).content([Piece("w@master", (0, 0), (2, 3))])
    assert isinstance(content, Trained)
    with pytest.raises(TransferError, match="no parameter group"):
        content.replay(torch.zeros(24, dtype=torch.uint8), 0, {})


def test_groups_travel_exactly() -> None:
    groups = {
        PLAIN: Hyperparameters(1 / 3, 0.1, 0.9, 0.95, 1e-8),
        UNDECAYED: Hyperparameters(1e-300, 0.0, 0.9, 0.95, 1),
    }
    assert decode_groups(encode_groups(groups).view(-1)) == groups
    with pytest.raises(TransferError, match="no multiple"):
        decode_groups(torch.zeros(5, dtype=torch.float64))
