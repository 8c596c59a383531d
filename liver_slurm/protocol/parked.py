"""What a survivor of a broken world says of itself."""

from __future__ import annotations

from typing import Literal

import msgspec

from liver_slurm.protocol.base import Message
from liver_slurm.reshard.snapshots import Kept


class Parked(Message, frozen=True, kw_only=True):
    """Report that the live world is broken, as a collective failed or ``Halt`` came: training waits for a next world.

    It is also the second witness of a peer's sudden death.
    """

    worker: str
    generation: int
    step: int
    """Steps that this worker has completed."""
    reached: Literal["nothing", "gradients", "torn"] = "nothing"
    """How far the step behind these has come here, see :data:`liver_slurm.engine.api.Reached`."""
    error: str = ""
    mirrors: dict[str, tuple[int, bool]] = msgspec.field(default_factory=dict)
    """Of the workers whose mirror is kept here: steps that it has completed (-1: it is not whole), and whether it can
    make one more."""
    verified: dict[str, int] = msgspec.field(default_factory=dict)
    """Of these: completed steps in the state that was proven last to be what its owner had; -1: none was."""
    own: list[int] = msgspec.field(default_factory=list)
    """Steps completed in the state of its own that it has put by."""
    kept: list[Kept] = msgspec.field(default_factory=list)
    """Snapshots of others that are kept here."""
