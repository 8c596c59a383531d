"""The events of workers and nodes that go, or will. Pure."""

from __future__ import annotations

from liver_slurm.rundir.event_base import EventBase


class WorkerLeft(EventBase, frozen=True, kw_only=True):
    """A worker has exited, as it was told to or after a notice."""

    worker: str
    host: str = ""
    reason: str = ""


class WorkerLost(EventBase, frozen=True, kw_only=True):
    """A worker is gone without having been told to go."""

    worker: str
    host: str = ""
    role: str = ""
    in_world: bool = False
    """It was a member of the live world."""
    reason: str = ""
    detected_by: str = ""
    """``hang-up``, ``process exit``, ``silence``, ``absence`` or ``its own word``; empty in runs of older versions."""
    detected_s: float = 0.0
    """Seconds from the first sign of it until it was believed."""


class MirrorDiffered(EventBase, frozen=True, kw_only=True):
    """A mirror was not what its owner had: it was dropped, and its state is sent to its keeper again.

    A coordinator that is started again says so once more.
    """

    worker: str
    """The mirror's keeper."""
    owner: str
    step: int
    """Completed steps in the state that was compared."""
    boxes: tuple[str, ...]
    """Tensors of the boxes that differed, at most eight."""
    differed: int
    """How often that was so of mirrors that the keeper's process has kept; several in a row are told as one."""


class Notice(EventBase, frozen=True, kw_only=True):
    """A worker will go away."""

    worker: str
    host: str = ""
    kind: str = "signal"
    reason: str = ""
    deadline: float | None = None
    """When it will be gone at the earliest, seconds since the epoch; None: nobody will kill it."""
    in_world: bool = False
    """It is a member of the live world."""


class NoticeChanged(EventBase, frozen=True, kw_only=True):
    """The notice of a worker has another kind, or another deadline."""

    worker: str
    host: str = ""
    kind: str = "signal"
    reason: str = ""
    deadline: float | None = None
    in_world: bool = False


class NoticeWithdrawn(EventBase, frozen=True, kw_only=True):
    """A worker stays after all."""

    worker: str
    host: str
    kind: str
    reason: str


class NodesGivenBack(EventBase, frozen=True, kw_only=True):
    """The scheduler has taken nodes of a component of the guaranteed job back, as it was asked to."""

    component: int
    nodes: tuple[str, ...]
    """Those that are free now."""
    kept: int
    """Nodes that are left to the component."""


class NodesKept(EventBase, frozen=True, kw_only=True):
    """The scheduler has refused to take nodes back."""

    component: int
    reason: str
