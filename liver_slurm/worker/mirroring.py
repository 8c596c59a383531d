"""What a worker's part in its world's mirrors has to do, in whatever way they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch

from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Replica
from liver_slurm.reshard.mirrors import Extent
from liver_slurm.reshard.snapshots import Kept
from liver_slurm.transfer.connections import Connections

Word = Literal["partial", "whole", "lost"]


@dataclass(frozen=True)
class Holds:
    """What a worker keeps, when its world is broken."""

    replayed: Mapping[str, Extent] = field(default_factory=dict)
    """How far the mirrors can go that are current to the last update, by the name of the worker that each is of."""
    verified: Mapping[str, int] = field(default_factory=dict)
    """Completed steps in the state of each of these that was proven last to be what its owner had; -1: none was."""
    own: Sequence[int] = ()
    """Steps completed in the state of its own that it has put by."""
    snapshots: Sequence[Kept] = ()
    """What it keeps of others."""


class Meeting(NamedTuple):
    """How survivors meet that rebuild what is lost."""

    names: Sequence[str]
    """All workers, each at its number."""
    connect: Callable[[], Connections]
    """Makes connections by these numbers; called once, and only where there is something to send or to take."""


class Mirrors(Protocol):
    """Of one world; opened while it is prepared, given up with it."""

    way: str
    """How they are kept, for people."""

    @property
    def word(self) -> Word:
        """How much of this worker's state its keeper has."""

    @property
    def seconds(self) -> float:
        """How long it held the last step up here."""

    @property
    def nbytes(self) -> int:
        """Host memory that it takes here, for what is this worker's and for what it keeps."""

    def attach(self, shard: TrainingShard) -> None:
        """Keep the shard's mirror current from its next step on."""

    @property
    def ready(self) -> bool:
        """Whether a refresh after the next step would hold nobody up here; see :meth:`all_ready`."""

    def prime(self, step: int) -> None:
        """Have the keeper take the state after ``step`` completed steps, if it is small: the world will begin with it.

        Called once, before the vote for that world, from any thread.
        """

    def all_ready(self) -> None:
        """Learn, after a step, that all members of the world were ready when it began: so the next one may refresh."""

    def holds(self) -> Holds:
        """Return what is kept here of a world that is broken; nothing is kept current any more."""

    def rebuild(self, lost: Mapping[str, str], step: int, meeting: Meeting) -> None:
        """Send what others need of this worker to have the state of those that are lost, and take what is needed here.

        Where nobody is lost all goes on as before.

        Args:
            lost: workers that are gone, and the survivor that keeps each one's.
            step: completed steps in that state.

        Raises:
            TransferError: a peer is gone, or has not got it.
        """

    def state_after(self, name: str, step: int, device: torch.device) -> Replica:
        """Return the state of a worker that is gone, on the device; nothing is kept current any more.

        Raises:
            TransferError: it is not kept here, does not reach that step, or is not what the worker had.
        """

    def go_back(self, shard: TrainingShard, step: int) -> None:
        """Write the state after ``step`` completed steps, which is put by here, over the shard's.

        Raises:
            TransferError: it is not put by, or not what was alive. Then the shard's state is of no use, nor is what was
                put by, which is not held any more.
        """

    def abort(self) -> None:
        """Keep nothing current any more; whoever waits, here or there, is thrown out. Callable from any thread."""

    def close(self) -> None:
        """Give all of it back; no step may be under way."""


def on_device(replica: Replica, device: torch.device) -> Replica:
    """Return a copy on a card, where peers read it; in host memory it is there already."""
    if device.type == "cpu":
        return replica
    trained = []
    for box in replica.trained:
        state = tuple(view.to(device, non_blocking=True) for view in box.state)
        # No update is to be made with it any more: nobody asks for the gradient's values.
        trained.append(replace(box, state=state, gradient=partial(torch.empty_like, state[0])))
    fixed = [(piece, view.to(device, non_blocking=True)) for piece, view in replica.fixed]
    torch.cuda.current_stream(device).synchronize()
    return Replica(trained, fixed)
