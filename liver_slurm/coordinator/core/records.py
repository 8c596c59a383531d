"""Records of the journal: all that a new coordinator needs to go on where the last one stopped."""

from __future__ import annotations

from typing import Any, Literal, Union

import msgspec

from liver_slurm.rundir.events import CommitStats


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all records; the tag is the class's name."""


class EpochStarted(_Record, frozen=True, kw_only=True):
    """A coordinator process started."""

    epoch: int
    job_id: str = ""
    """Slurm job that it belongs to; empty: none."""
    restarts: int = 0
    """How often Slurm had started that job again."""


class AttemptStarted(_Record, frozen=True, kw_only=True):
    """Prepare goes out for a target world; its generation number is used up."""

    generation: int
    layout: str
    members: tuple[str, ...]
    source_members: tuple[str, ...]
    reason: str


class AttemptAborted(_Record, frozen=True, kw_only=True):
    """The target world was given up before the commit."""

    generation: int
    reason: str


class Committed(_Record, frozen=True, kw_only=True):
    """The commit record: from here on the target world is the live one."""

    generation: int
    layout: str
    members: tuple[str, ...]
    source_layout: str
    source_members: tuple[str, ...]
    source_generation: int
    step: int
    cause: Literal["start", "notice", "request", "capacity", "successor"]
    reason: str
    summary: dict[str, Any]
    """:attr:`stats` as they stand in the journal, empty for world 0."""

    @property
    def stats(self) -> CommitStats | None:
        """What the reconfiguration did and took; None: this is world 0."""
        return msgspec.convert(self.summary, CommitStats) if self.summary else None


class Entered(_Record, frozen=True, kw_only=True):
    """All members of a committed world have begun its first forward pass."""

    generation: int


class BoundaryProposed(_Record, frozen=True, kw_only=True):
    """Members may stop at a step and wait."""

    boundary: int


class BoundaryClosed(_Record, frozen=True, kw_only=True):
    """A boundary was confirmed or withdrawn: no member waits for the decision any more. A commit record closes all."""

    boundary: int


class RequestTaken(_Record, frozen=True, kw_only=True):
    """A resize request was accepted."""

    number: int
    layout: str
    workers: int
    at_step: int
    give_back: bool = False


class RequestClosed(_Record, frozen=True, kw_only=True):
    """A resize request was fulfilled or given up."""

    number: int
    fulfilled: bool


class LifeBegan(_Record, frozen=True, kw_only=True):
    """The first worker of a standby job is ready."""

    job_id: str
    partition: str
    time: float


class LifeEnded(_Record, frozen=True, kw_only=True):
    """A standby job goes away or is gone."""

    job_id: str
    time: float
    taken: bool


class Measurement(_Record, frozen=True, kw_only=True):
    """What a reconfiguration took, in seconds."""

    generation: int
    added: int
    prepare_s: float
    exposed_s: float
    time: float


class NodesGivenBack(_Record, frozen=True, kw_only=True):
    """Slurm has taken nodes of a component of a guaranteed job back."""

    job_id: str
    component: int
    kept: int
    """Nodes that are left to it."""
    again: bool = False
    """Slurm may take further single nodes of it."""


class BegunAnew(_Record, frozen=True, kw_only=True):
    """All worlds so far are lost: the run goes on from ``checkpoint`` with workers that were in none of them."""

    checkpoint: str
    """Folder that the next world loads; empty: it starts from the seed."""
    step: int
    """Completed steps in it."""
    steps_lost: int
    """Steps beyond it that were trained and will be trained again."""
    reason: str


class HandedOver(_Record, frozen=True, kw_only=True):
    """The live world trains in another job, whose coordinator goes on with the run; no other may."""

    job_id: str


class Ended(_Record, frozen=True, kw_only=True):
    """The run's outcome is decided."""

    code: int
    reason: str


Record = Union[  # noqa: UP007 - msgspec wants a Union it can take apart on Python 3.10
    EpochStarted,
    AttemptStarted,
    AttemptAborted,
    Committed,
    Entered,
    BoundaryProposed,
    BoundaryClosed,
    RequestTaken,
    RequestClosed,
    LifeBegan,
    LifeEnded,
    Measurement,
    NodesGivenBack,
    BegunAnew,
    HandedOver,
    Ended,
]
