"""The event log of a run, ``events.jsonl``: what happened, when and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from liver_slurm.base.jsonl import LineWriter, follow_lines, read_lines

Event = dict[str, Any]
"""At least ``{"time": seconds since the epoch, "event": name}``."""


class EventLog:
    """Appends events; each is on disk as a whole line or not at all."""

    def __init__(self, path: Path) -> None:
        self._lines = LineWriter(path)

    def append(self, event: str, **fields: Any) -> Event:
        """Append one event, with the time; returns what was written."""
        document = {"time": time.time(), "event": event, **fields}
        self._lines.write(document)
        return document

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_events(path: Path) -> Iterator[Event]:
    """All events so far."""
    return (line for line in read_lines(path) if "event" in line)


def follow_events(path: Path, stop: Callable[[], bool] = lambda: False, poll: float = 0.2) -> Iterator[Event]:
    """All events, then new ones as they come, until ``stop()`` holds and everything was read."""
    return (line for line in follow_lines(path, stop, poll) if "event" in line)
