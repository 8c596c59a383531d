"""The turns in a run's life that people outside are told of, as messages for them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir import events
from liver_slurm.rundir.events import Document, from_document

ENDS = {"finished": "finished", "failed": "failed", "cancelled": "stopped", "stopped": "stopped"}
"""How a run ended, and what of it is told."""


@dataclass(frozen=True)
class Message:
    """One turn, ready to be told."""

    event: str
    """One of the names that ``notify.events`` allows."""
    what: str
    """What has happened, without the run's name, such as ``grew: tp1pp1dp2 → tp1pp1dp4 at step 60``."""
    time: float
    """Seconds since the epoch."""
    step: int
    generation: int
    layout: str
    """Of the live world; empty: there is none."""
    reason: str

    def document(self, run: str, name: str, job_id: str, run_dir: str) -> dict[str, Any]:
        """Make the JSON document that is handed to a command or posted.

        Args:
            run: the run directory's name.
            name: ``job.name``.
            job_id: Slurm's id of the guaranteed job; empty: plain processes.
        """
        whose = f"{run} (job {job_id})" if job_id else run
        return {
            "text": f"{whose} {self.what}" + (f": {self.reason}" if self.reason else ""),
            "event": self.event,
            "run": run,
            "name": name,
            "job_id": job_id,
            "run_dir": run_dir,
            "time": self.time,
            "step": self.step,
            "generation": self.generation,
            "layout": self.layout,
            "reason": self.reason,
        }


class Life:
    """Follows a run's events, and says which of them are turns in its life."""

    def __init__(self, before: Iterable[Document] = ()) -> None:
        """``before``: events that were told by an earlier coordinator, or were not to be."""
        self._trains = False
        for document in before:
            self.hear(from_document(document))

    def hear(self, event: events.Event | events.UnknownEvent) -> Message | None:
        """Make a message of an event; None: nobody outside is told of it."""
        match event:
            case events.WorldLive():
                first, self._trains = not self._trains, True
                layout = event.layout or ""
                return _message("started", f"trains as {layout}", event, event.step, layout) if first else None
            case events.ReconfigurationCommitted():
                return _of_change(event)
            case events.BegunAnew():
                self._trains = False
            case events.Interrupted():
                self._trains = False
                return _message(
                    "interrupted", f"was interrupted at step {event.step}", event, event.step, "", event.reason
                )
            case events.RunEnded():
                self._trains = False
                what = f"{_past(event.outcome)} at step {event.step}"
                return _message(ENDS.get(event.outcome, "stopped"), what, event, event.step, "", event.reason)
        return None


def _past(outcome: str) -> str:
    return outcome if outcome in ("finished", "failed") else f"was {outcome}"


def _of_change(event: events.ReconfigurationCommitted) -> Message | None:
    """Tell of a new world; None: it is the first one, of which its start is told."""
    if not event.source:
        return None
    before, after = Layout.parse(event.source).size, Layout.parse(event.to).size
    name = "grew" if after > before else "shrank" if after < before else "reshaped"
    word = "was reshaped" if name == "reshaped" else name
    what = f"{word}: {event.source} → {event.to} at step {event.cutover_step}"
    return _message(name, what, event, event.cutover_step, event.to, event.reason)


def _message(
    name: str,
    what: str,
    event: events.Event,
    step: int,
    layout: str,
    reason: str = "",
) -> Message:
    return Message(name, what, event.time, step, event.generation, layout, reason)
