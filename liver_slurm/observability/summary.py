"""What a run's files say about it: its status, and the table of reconfigurations. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from liver_slurm.observability.status import RunStatus, TargetStatus, WorkerStatus
from liver_slurm.rundir import events
from liver_slurm.rundir.events import Document, from_document
from liver_slurm.rundir.metrics import StepMetrics

OVER = frozenset({"finished", "failed", "cancelled", "stopped"})
"""States that a run never leaves."""
LOST = "lost"
"""State of a run whose processes are gone and that never said how it ended; told by looking for them, not by files."""
PREPARED = "prepared"
"""State of a run that ``submit --prepare`` has made and nobody has started; likewise."""


class RunSummary:
    """A run as its events tell it; :meth:`add` takes them in order."""

    def __init__(self) -> None:
        self.state = "pending"
        self.reason = ""
        self.generation = -1
        self.layout: str | None = None
        self.members: tuple[str, ...] = ()
        self.target: TargetStatus | None = None
        self.standbys: dict[str, WorkerStatus] = {}
        self.reconfigurations: list[Document] = []
        """Lines of the reconfigurations that are over, with all keys that their version wrote."""
        self.step = 0

    def add(self, document: Document) -> None:
        """Take one line of the event log in; those that do not change what a run is doing are passed over."""
        event = from_document(document)
        match event:
            case events.CoordinatorStarted():
                self.state = "training" if self.members else "starting"
            case events.StandbyReady():
                self.standbys[event.worker] = WorkerStatus(
                    worker=event.worker, host=event.host, job_id=event.job_id, warm=True
                )
            case events.WorkerLeft() | events.WorkerLost():
                self.standbys.pop(event.worker, None)
            case events.ReconfigurationStarted():
                self.target = TargetStatus(generation=event.generation, layout=event.to)
                self.reason = event.reason
            case events.ReconfigurationAborted():
                self.target, self.reason = None, f"aborted: {event.reason}"
            case events.ReconfigurationCommitted():
                self.reconfigurations.append(document)
                self.reason = event.reason
            case events.WorldLive():
                self._world_live(event)
            case events.Interrupted():
                self.state, self.target, self.members = "pending", None, ()
                self.reason = event.reason
            case events.BegunAnew():
                self.state, self.target, self.members = "starting", None, ()
                self.step, self.reason = event.step, event.reason
            case events.RunEnded():
                self.state, self.target, self.standbys = event.outcome, None, {}
                self.reason, self.step = event.reason, max(self.step, event.step)

    def status(self, steps: int, last: StepMetrics | None) -> RunStatus:
        """Return the run's status, from files alone.

        Args:
            steps: steps of the whole run.
            last: newest line of the metrics.
        """
        return RunStatus(
            state=self.state,
            step=max(self.step, last.step if last is not None else 0),
            steps=steps,
            generation=self.generation,
            layout=self.layout,
            target=self.target,
            workers=[WorkerStatus(rank=rank, worker=worker) for rank, worker in enumerate(self.members)],
            standbys=list(self.standbys.values()),
            last_reconfiguration=self.reconfigurations[-1] if self.reconfigurations else None,
            reason=self.reason,
            loss=last.loss if last is not None else None,
            consumed_samples=last.consumed_samples if last is not None else 0,
        )

    def _world_live(self, event: events.WorldLive) -> None:
        self.state, self.target = "training", None
        self.generation, self.layout = event.generation, event.layout
        gone = {*self.members, *event.members}
        self.members = event.members
        self.standbys = {name: fields for name, fields in self.standbys.items() if name not in gone}
        self.step = max(self.step, event.step)


def summarize(documents: Iterable[Document]) -> RunSummary:
    """Fold the event log of a run."""
    run = RunSummary()
    for document in documents:
        run.add(document)
    return run


COLUMNS = (
    "generation", "from", "to", "reason", "exposed_s", "pause_s", "prepare_s", "stream_s", "bytes", "mode",
    "cutover_step",
)  # fmt: skip


def reconfiguration_table(reconfigurations: Iterable[Mapping[str, Any]]) -> list[Document]:
    """Return a row a committed reconfiguration, with the keys of :data:`COLUMNS`; what an event lacks is None."""
    return [
        {**{name: event.get(name) for name in COLUMNS}, "bytes": event.get("bytes_moved"), "exposed_s": exposed(event)}
        for event in reconfigurations
    ]


def exposed(event: Mapping[str, Any]) -> float | None:
    """Return how long training waited for a reconfiguration in all; early versions wrote the pause alone."""
    return event.get("exposed_s") or event.get("pause_s")
