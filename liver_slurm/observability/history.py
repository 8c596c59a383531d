"""What a run's events say of its notices, its attempt at a next world, and its last turns. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from liver_slurm.rundir import events
from liver_slurm.rundir.events import Document, from_document

KEPT = 50
"""Happenings that are remembered."""


@dataclass(frozen=True)
class Happening:
    """One turn in a run's life, for people."""

    time: float
    """Seconds since the epoch."""
    what: str
    """A change of layout, such as ``tp1pp1dp2 → tp1pp1dp3``, or what else came to pass."""
    why: str = ""
    step: int | None = None
    """Steps that were completed; None: it is of no step."""
    cost_s: float | None = None
    """How long training waited for it; None: it did not, or nobody knows."""
    bad: bool = False
    """It is a loss or a failure."""


@dataclass(frozen=True)
class Preparing:
    """The attempt that is under way."""

    generation: int
    source: str
    to: str
    reason: str
    since: float
    """Seconds since the epoch."""
    phase: str = "PREPARE"


class RunHistory:
    """A run's events, folded; :meth:`add` takes them in order."""

    def __init__(self) -> None:
        self.notices: dict[str, events.Notice | events.NoticeChanged] = {}
        """By worker; of those that are still there."""
        self.preparing: Preparing | None = None
        self.happenings: deque[Happening] = deque(maxlen=KEPT)
        """Oldest first."""
        self.ended: float | None = None
        """When the run ended, seconds since the epoch; None: it goes on."""

    def add(self, document: Document) -> None:
        """Take one line of the event log in."""
        event = from_document(document)
        self._of_worker(event)
        self._of_attempt(event)
        happening = told(event)
        if happening is not None:
            self.happenings.append(happening)
        if isinstance(event, events.Interrupted | events.BegunAnew | events.RunEnded):
            self.notices.clear()
            self.preparing = None
        if isinstance(event, events.RunEnded):
            self.ended = event.time

    def _of_worker(self, event: events.Event | events.UnknownEvent) -> None:
        match event:
            case events.Notice() | events.NoticeChanged():
                self.notices[event.worker] = event
            case events.NoticeWithdrawn() | events.WorkerLeft() | events.WorkerLost():
                self.notices.pop(event.worker, None)

    def _of_attempt(self, event: events.Event | events.UnknownEvent) -> None:
        match event:
            case events.ReconfigurationStarted():
                self.preparing = Preparing(event.generation, event.source, event.to, event.reason, event.time)
            case events.ReconfigurationPrepared():
                self._phase("STREAM")
            case events.ReconfigurationStreamed():
                self._phase("CUTOVER")
            case events.ReconfigurationCommitted() | events.ReconfigurationAborted() | events.WorldLive():
                self.preparing = None

    def _phase(self, phase: str) -> None:
        now = self.preparing
        if now is not None:
            self.preparing = Preparing(now.generation, now.source, now.to, now.reason, now.since, phase)


def told(event: events.Event | events.UnknownEvent) -> Happening | None:
    """Tell an event to people; None: it is no turn in the run's life."""
    return _of_reconfiguration(event) or _of_run(event)


def _of_reconfiguration(event: events.Event | events.UnknownEvent) -> Happening | None:
    match event:
        case events.ReconfigurationCommitted():
            cost = event.exposed_s or event.pause_s
            return Happening(event.time, f"{event.source} → {event.to}", event.reason, event.cutover_step, cost)
        case events.ReconfigurationAborted():
            why = f"aborted: {event.reason}"
            return Happening(event.time, f"{event.source} → {event.to}", why, bad=True)
        case events.ResizeGivenUp():
            return Happening(event.time, f"resize to {event.wanted} given up", event.reason, bad=True)
    return None


def _of_run(event: events.Event | events.UnknownEvent) -> Happening | None:
    found: Happening | None = None
    match event:
        case events.CoordinatorStarted() if event.epoch > 1:
            found = Happening(event.time, "coordinator started again", f"start {event.epoch}")
        case events.BegunAnew():
            found = Happening(event.time, "started again from a checkpoint", event.reason, event.step, bad=True)
        case events.Interrupted():
            found = Happening(event.time, "interrupted", event.reason, event.step, bad=True)
        case events.HandedOver():
            found = Happening(event.time, "handed over to the successor job", event.reason, event.step)
        case events.WorkerLost():
            found = Happening(event.time, f"{event.worker} lost", event.reason, bad=True)
        case events.LaunchRefused():
            found = Happening(event.time, "standby jobs refused", event.reason, bad=True)
        case events.StandbyFailed():
            alone = f", the next is tried in {event.alone_s:.0f} s" if event.alone_s else ""
            why = f"before a worker was ready, {event.in_a_row} in a row in {event.partition}{alone}; see its log"
            found = Happening(event.time, f"standby job {event.job_id} failed", why, bad=True)
        case events.CheckpointFailed():
            found = Happening(event.time, "checkpoint failed", event.error, event.step, event.stall_s, bad=True)
        case events.CheckpointRefused():
            found = Happening(event.time, "checkpoint refused", f"{event.path}: {event.error}", bad=True)
        case events.StrangersRefused():
            callers = f"{event.control} at the control channel, {event.store} at the store, since its start"
            found = Happening(event.time, "callers without the run's key refused", callers, bad=True)
        case events.RunEnded():
            found = Happening(event.time, event.outcome, event.reason, event.step, bad=event.outcome == "failed")
    return found
