"""What a run's events add up to: the counters that monitoring reads. Pure."""

from __future__ import annotations

from collections import Counter
from itertools import product

from liver_slurm.rundir import events
from liver_slurm.rundir.events import Document, from_document

CAUSES = ("start", "notice", "request", "capacity", "successor", "loss")
"""Of reconfigurations."""
NOTICES = (
    *("preemption", "time limit", "suspension", "node", "reservation", "ending"),
    *("signal", "over", "successor"),
)
"""Kinds of them: Slurm's, and what workers say themselves."""


class RunCounters:
    """Counts a run's events from its beginning; :meth:`add` takes them in order.

    What has not come yet counts 0, so that a rate knows of the first one.
    """

    def __init__(self) -> None:
        self.reconfigurations: Counter[tuple[str, str]] = Counter(
            dict.fromkeys(product(CAUSES, ("committed", "aborted")), 0)
        )
        """By cause and result, ``committed`` or ``aborted``."""
        self.exposed_s = 0.0
        """Training waited for reconfigurations, seconds."""
        self.pause_s = 0.0
        """The part of it between two worlds, seconds."""
        self.bytes_moved = 0
        self.notices: Counter[str] = Counter(dict.fromkeys(NOTICES, 0))
        """By kind."""
        self.workers_lost = 0
        self.restarts = 0
        """The run went on from a checkpoint because its worlds were lost."""
        self.steps_lost = 0
        """Steps that were trained again because of that."""
        self.coordinator_starts = 0
        self.checkpoints: Counter[str] = Counter(dict.fromkeys(("written", "failed"), 0))
        """By result, ``written`` or ``failed``."""
        self.checkpoint_stall_s = 0.0
        """Training waited for checkpoints, seconds."""

    def add(self, document: Document) -> None:
        """Take one line of the event log in."""
        event = from_document(document)
        match event:
            case events.ReconfigurationCommitted():
                self.reconfigurations[event.cause, "committed"] += 1
                self.exposed_s += event.exposed_s or event.pause_s
                self.pause_s += event.pause_s
                self.bytes_moved += event.bytes_moved
            case events.ReconfigurationAborted():
                self.reconfigurations[event.cause, "aborted"] += 1
            case events.Notice():
                self.notices[event.kind] += 1
            case events.WorkerLost():
                self.workers_lost += 1
            case events.BegunAnew():
                self.restarts += 1
                self.steps_lost += event.steps_lost
            case events.CoordinatorStarted():
                self.coordinator_starts += 1
            case events.CheckpointWritten() | events.CheckpointFailed():
                self.checkpoints["written" if isinstance(event, events.CheckpointWritten) else "failed"] += 1
                self.checkpoint_stall_s += event.stall_s
