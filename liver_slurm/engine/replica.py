"""An engine's state as what moves it sees it: boxes, a rank's share of them, and the optimizer's updates of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import ADAM, Box, Piece, inside

Boxes = Sequence[tuple[Piece, torch.Tensor]]
"""Pieces of state, each with a view of its storage in the piece's shape."""

LayerFilter = Callable[[int], bool]
"""Chooses transformer layers by number; -1 stands for parameters that belong to no layer."""


def every_layer(_layer: int) -> bool:
    """Choose all layers, and the parameters that belong to none."""
    return True


@dataclass(frozen=True)
class TrainedBox:
    """A box of one weight's master and moments where a rank keeps them; views in the box's shape.

    ``gradient`` returns the view of the reduced, clipped gradient, whose storage stays the same while the shard exists;
    its values are valid from the optimizer's pre-step hook until the gradient buffer is zeroed.
    """

    piece: Piece
    state: tuple[torch.Tensor, ...]
    """Master, then the moments."""
    gradient: Callable[[], torch.Tensor]
    group: GroupSpec
    moments: tuple[str, ...] = ADAM
    """What they are called; see :func:`liver_slurm.reshard.tensors.moments_of`."""

    @property
    def master(self) -> torch.Tensor:
        """The weight in fp32, which the optimizer updates."""
        return self.state[0]

    @property
    def moment_dtype(self) -> str:
        """What the optimizer's own moments are kept in."""
        return str(self.state[1].dtype).removeprefix("torch.")

    def part(self, offset: Box, shape: Box) -> TrainedBox | None:
        """Return the box at ``offset`` of ``shape`` inside this one; None if it does not lie in it."""
        place = inside(offset, shape, self.piece)
        if place is None:
            return None
        return TrainedBox(
            Piece(self.piece.tensor, offset, shape),
            tuple(view[place] for view in self.state),
            lambda: self.gradient()[place],
            self.group,
            self.moments,
        )


@dataclass(frozen=True)
class Replica:
    """A rank's share of a world's state: boxes that are trained, and weights that are not."""

    trained: Sequence[TrainedBox]
    fixed: Boxes


def joined(one: Replica, other: Replica) -> Replica:
    """Return the boxes of both."""
    return Replica([*one.trained, *other.trained], [*one.fixed, *other.fixed])


class Hyperparameters(NamedTuple):
    """Values that one optimizer update uses for one group of parameters; those of the other optimizer are 0."""

    lr: float
    weight_decay: float
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    momentum: float = 0.0
    ema_decay: float = 0.0
    balance_rate: float = 0.0
    """Of biases that balance experts' load; 0: the group has none."""


Groups = Mapping[GroupSpec, Hyperparameters]


class Updates(Protocol):
    """The optimizer updates of a shard that trains, for whoever keeps a copy of its state current."""

    def adam_step(self) -> int:
        """Return the number of updates made so far; -1: not known here, as this rank trains nothing."""

    def groups(self) -> Groups:
        """Return the hyperparameters of the next update, for each group of this rank's parameters."""

    def watch(
        self, before: Callable[[], None], after: Callable[[], None], zeroing: Callable[[], None] | None
    ) -> Callable[[], None]:
        """Install hooks around each update; they run in the training thread. Returns the function that removes them.

        Args:
            before: called when gradients and hyperparameters of an update are final.
            after: called when the update's state is.
            zeroing: called before the gradients are zeroed, if given; one watcher at a time has it.

        A step that is skipped because its gradient is not finite calls neither ``before`` nor ``after``.
        """
