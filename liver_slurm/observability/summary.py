"""What a run's files say about it: the status document, and the table of reconfigurations. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from liver_slurm.rundir.events import Event
from liver_slurm.rundir.metrics import StepMetrics

OVER = frozenset({"finished", "failed", "cancelled", "stopped"})
"""States that a run never leaves."""
LOST = "lost"
"""State of a run whose processes are gone and that never said how it ended; told by looking for them, not by files."""
Document = dict[str, Any]


class RunSummary:
    """A run as its events tell it; :meth:`add` takes them in order."""

    def __init__(self) -> None:
        self.state = "pending"
        self.reason = ""
        self.generation = -1
        self.layout: str | None = None
        self.members: list[str] = []
        self.target: Document | None = None
        self.standbys: dict[str, Document] = {}
        self.reconfigurations: list[Document] = []
        """The ``reconfiguration_committed`` events so far."""
        self.step = 0

    def add(self, event: Event) -> None:
        """Take one event in; those that do not change what a run is doing are passed over."""
        handler = getattr(self, f"_{event['event']}", None)
        if handler is not None:
            handler(event)

    def document(self, steps: int, last: StepMetrics | None) -> Document:
        """The status document of ``status --json``, from files alone.

        Args:
            steps: steps of the whole run.
            last: newest line of the metrics.
        """
        return {
            "state": self.state,
            "step": max(self.step, last.step if last is not None else 0),
            "steps": steps,
            "generation": self.generation,
            "layout": self.layout,
            "target": self.target,
            "workers": [{"rank": rank, "worker": worker} for rank, worker in enumerate(self.members)],
            "standbys": [{"worker": worker, **fields} for worker, fields in self.standbys.items()],
            "last_reconfiguration": self.reconfigurations[-1] if self.reconfigurations else None,
            "reason": self.reason,
        }

    # One method an event, by its name.

    def _coordinator_started(self, event: Event) -> None:
        self.state = "training" if self.members else "starting"

    def _standby_ready(self, event: Event) -> None:
        self.standbys[event["worker"]] = {"host": event.get("host"), "job_id": event.get("job_id"), "warm": True}

    def _worker_gone(self, event: Event) -> None:
        self.standbys.pop(event["worker"], None)

    _worker_left = _worker_lost = _worker_gone

    def _reconfiguration_started(self, event: Event) -> None:
        self.target = {"generation": event["generation"], "layout": event.get("to")}
        self.reason = event.get("reason", "")

    def _reconfiguration_aborted(self, event: Event) -> None:
        self.target = None
        self.reason = f"aborted: {event.get('reason', '')}"

    def _reconfiguration_committed(self, event: Event) -> None:
        self.reconfigurations.append(event)
        self.reason = event.get("reason", "")

    def _world_live(self, event: Event) -> None:
        self.state, self.target = "training", None
        self.generation, self.layout = event["generation"], event.get("layout")
        members, leavers = list(event.get("members", [])), self.members
        self.members = members
        self.standbys = {name: fields for name, fields in self.standbys.items() if name not in members + leavers}
        self.step = max(self.step, event.get("step", 0))

    def _interrupted(self, event: Event) -> None:
        self.state, self.target, self.members = "pending", None, []
        self.reason = event.get("reason", "")

    def _begun_anew(self, event: Event) -> None:
        self.state, self.target, self.members = "starting", None, []
        self.step, self.reason = event["step"], event.get("reason", "")

    def _run_ended(self, event: Event) -> None:
        self.state, self.target = event["outcome"], None
        self.reason = event.get("reason", "")
        self.step = max(self.step, event.get("step", 0))
        self.standbys = {}


def summarize(events: Iterable[Event]) -> RunSummary:
    """Fold all events of a run."""
    run = RunSummary()
    for event in events:
        run.add(event)
    return run


COLUMNS = ("generation", "from", "to", "reason", "pause_s", "prepare_s", "stream_s", "bytes", "mode", "cutover_step")


def reconfiguration_table(reconfigurations: Iterable[Mapping[str, Any]]) -> list[Document]:
    """A row a committed reconfiguration, with the keys of :data:`COLUMNS`; what an event lacks is None."""
    return [
        {**{name: event.get(name) for name in COLUMNS}, "bytes": event.get("bytes_moved")} for event in reconfigurations
    ]
