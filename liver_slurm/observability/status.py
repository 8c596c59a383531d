"""The status document: what a run is doing, as the coordinator says it or as the run's files tell it. Pure.

Its keys are a contract with other programs. Fields that only one of the two sources knows are left out of the other's
document.
"""

from __future__ import annotations

from typing import Any, TypeVar, Union

import msgspec
from msgspec import UNSET, UnsetType

from liver_slurm.rundir.events import Document, ReconfigurationCommitted, UnknownEvent, event_name, from_document

T = TypeVar("T")
Known = Union[T, UnsetType]  # noqa: UP007 - an alias with a parameter
"""A field that is left out where its value is not known."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts."""


class TargetStatus(_Part, frozen=True, kw_only=True):
    """The world that is being prepared."""

    generation: int
    layout: str | None


class WorkerStatus(_Part, frozen=True, kw_only=True):
    """One worker. Of most, files tell only the name."""

    rank: Known[int] = UNSET
    """In the live world; left out of a worker in none."""
    warm: Known[bool] = UNSET
    """Can join a world at once; left out of a member of the live one."""
    worker: str
    role: Known[str] = UNSET
    host: Known[str | None] = UNSET
    pid: Known[int] = UNSET
    began: Known[int] = UNSET
    """When the process began, in clock ticks since its machine's start."""
    job_id: Known[str | None] = UNSET
    device: Known[str] = UNSET
    generation: Known[int] = UNSET
    step: Known[int] = UNSET
    notice: Known[str | None] = UNSET
    """Why it will go away; None: it will not."""
    mirror: Known[str] = UNSET
    """How much of its state a peer keeps: ``partial``, ``whole``, or ``lost``; left out where no mirror is needed."""
    mirror_way: Known[str] = UNSET
    """How the world's mirrors are kept: copies or parity, and how current they are."""
    mirror_bytes: Known[int] = UNSET
    """Host memory that mirrors take in this worker."""
    mirror_proofs: Known[tuple[int, int]] = UNSET
    """Proofs that were made of mirrors kept here, and those in which one differed from what its owner had; left out
    before the first."""


class StandbyJobStatus(_Part, frozen=True, kw_only=True):
    """One standby job, as the scheduler shows it."""

    job_id: str
    state: str
    nodes: list[str]
    notice: str | None
    """Kind of its notice; None: there is none."""
    partition: Known[str] = UNSET


class RequestStatus(_Part, frozen=True, kw_only=True):
    """One resize request that is not fulfilled yet."""

    request: int
    layout: str
    """Empty: the best for ``workers``."""
    workers: int
    at_step: int
    """-1: as soon as possible."""


class QueryStatus(_Part, frozen=True, kw_only=True):
    """How often the scheduler is asked."""

    last_minute: int | None
    """None: it is not counted."""
    per_minute: float
    """At most."""


class RunStatus(_Part, frozen=True, kw_only=True):
    """The status document."""

    run_id: Known[str] = UNSET
    state: str
    """``prepared``, ``pending``, ``starting``, ``training``, or how the run ended; also another phase of the
    coordinator."""
    phase: Known[str] = UNSET
    epoch: Known[int] = UNSET
    step: int
    steps: int
    generation: int
    layout: str | None
    target: TargetStatus | None
    workers: list[WorkerStatus]
    standbys: list[WorkerStatus]
    standby_jobs: Known[list[StandbyJobStatus]] = UNSET
    successor: Known[str | None] = UNSET
    scheduler: Known[str | None] = UNSET
    """Why the scheduler cannot be seen; None: it can."""
    queries: Known[QueryStatus] = UNSET
    requests: Known[list[RequestStatus]] = UNSET
    last_reconfiguration: Document | None
    """Fields of a :class:`ReconfigurationCommitted`, of whatever version wrote it; None: there was none."""
    reason: str
    rejected: Known[dict[str, int]] = UNSET
    checkpoint_error: Known[str] = UNSET
    """Why the last checkpoint could not be written; left out if it was, or there was none yet."""
    files: Known[dict[str, str]] = UNSET
    """Processes whose lines wait to be written, and why; left out if there is none."""
    name: Known[str] = UNSET
    job_id: Known[str] = UNSET
    """Empty: plain processes."""
    run_dir: Known[str] = UNSET
    loss: Known[float | None] = UNSET
    """Of the last step; None: there was none, or it was not finite."""
    consumed_samples: Known[int] = UNSET
    tokens_per_s: Known[float] = UNSET
    """Of the last steps of the live world, from the start of the first of them to the end of the last."""
    tflops: Known[float] = UNSET
    """Model TFLOP/s of each rank's card in these steps."""
    mfu: Known[float] = UNSET
    """``tflops`` over the card's peak."""
    validation: Known[dict[str, Any]] = UNSET
    """Fields of the last :class:`liver_slurm.rundir.validation.ValidationMetrics`; left out if there was none."""
    validating: Known[tuple[int, float]] = UNSET
    """Training stands for a validation: samples done of it, and estimated seconds left; left out if it does not."""
    source: Known[str] = UNSET
    """``coordinator`` or ``files``."""
    coordinator: Known[str] = UNSET
    """Why the coordinator does not answer."""
    created: Known[float] = UNSET
    """When the run directory was made, seconds since the epoch."""
    certain: Known[bool] = UNSET
    """Whether the scheduler could be asked for the run's job."""

    def document(self) -> dict[str, Any]:
        """Return the status ready for JSON."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document

    @property
    def reconfiguration(self) -> ReconfigurationCommitted | None:
        """The last one; None: there was none, or another version wrote it."""
        if self.last_reconfiguration is None:
            return None
        name = event_name(ReconfigurationCommitted)
        event = from_document({**self.last_reconfiguration, "event": name})
        assert isinstance(event, ReconfigurationCommitted | UnknownEvent), "the name says which it is"
        return event if isinstance(event, ReconfigurationCommitted) else None


def from_status(document: dict[str, Any]) -> RunStatus:
    """Return the status in a document, without keys that this version does not know.

    Raises:
        msgspec.ValidationError: it is no status document.
    """
    return msgspec.convert(document, RunStatus)
