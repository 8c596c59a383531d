"""A shard of Adam's state for tests of mirrors: its steps are made by hand, and a function of its rank and the step."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from liver_slurm.engine.replica import Groups, Hyperparameters, Replica, TrainedBox
from liver_slurm.engine.update_rules import update
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer.mirror.snapshot import tensors_of

GROUP = GroupSpec()
SHAPES = [((3, 4), (5,)), ((2, 2, 2),), ((7,), (1,), (2, 3)), ()]
"""Of the ranks' boxes; the last one trains nothing."""


class Shard:
    """Some boxes of Adam's and a weight that is not trained, which other ranks have no part of."""

    world = SimpleNamespace(backend="gloo")

    def __init__(self, rank: int) -> None:
        values = torch.Generator().manual_seed(rank)
        self.rank, self.made, self.was_overwritten = rank, 0, False
        self.hooks = list[tuple[Callable[[], None], Callable[[], None]]]()
        self.gradients_final: Callable[[int, bool], None] | None = None
        self.gradients = [torch.zeros(shape) for shape in SHAPES[rank % len(SHAPES)]]
        self.trained = [
            TrainedBox(
                Piece(f"w{number}", (0,) * one.dim(), tuple(one.shape)),
                (torch.randn(one.shape, generator=values), torch.zeros(one.shape), torch.zeros(one.shape)),
                (lambda number=number: self.gradients[number]),  # type: ignore[misc]
                GROUP,
            )
            for number, one in enumerate(self.gradients)
        ]
        self.fixed = [(Piece("frozen", (0,), (3,)), torch.full((3,), float(rank), dtype=torch.bfloat16))]

    def replica(self) -> Replica:
        return Replica(self.trained, self.fixed)

    def updates(self) -> Shard:
        return self

    def adam_step(self) -> int:
        return self.made

    def groups(self) -> Groups:
        return {GROUP: Hyperparameters(1e-2, 0.1, 0.9, 0.95, 1e-8)}

    def when_gradients_are_final(self, call: Callable[[int, bool], None] | None) -> None:
        self.gradients_final = call

    def overwritten(self, updates: int) -> None:
        self.made, self.was_overwritten = updates, True

    def watch(self, before: Callable[[], None], after: Callable[[], None], _zeroing: Any) -> Callable[[], None]:
        self.hooks.append((before, after))
        return self.hooks.clear

    def update(self, step: int) -> None:
        values = torch.Generator().manual_seed(1000 * step + self.rank)
        for gradient in self.gradients:
            gradient.copy_(torch.randn(gradient.shape, generator=values))
        if not self.trained:
            return
        for before, _ in self.hooks:
            before()
        with torch.no_grad():
            update([(*box.state, box.gradient()) for box in self.trained], self.made, self.groups()[GROUP])
        self.made += 1
        for _, after in self.hooks:
            after()

    def state(self) -> list[torch.Tensor]:
        return [view.clone() for view in tensors_of(self.replica())]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
