"""The event log of a run, ``events.jsonl``: what happened, when and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from liver_slurm.base.jsonl import LineWriter, follow_lines, read_lines
from liver_slurm.rundir.events import Document, Event, UnknownEvent, from_document, to_document


class EventLog:
    """Appends events; each is on disk as a whole line or not at all."""

    def __init__(self, path: Path) -> None:
        self._lines = LineWriter(path)

    def append(self, event: Event) -> Document:
        """Append one event, with the time; returns what was written."""
        document = to_document(msgspec.structs.replace(event, time=time.time()))
        self._lines.write(document)
        return document

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_events(path: Path) -> Iterator[Event | UnknownEvent]:
    """All events so far."""
    return map(from_document, read_documents(path))


def read_documents(path: Path) -> Iterator[Document]:
    """All events so far as they stand in the file, with keys that this version does not know."""
    return (line for line in read_lines(path) if "event" in line)


def follow_documents(path: Path, stop: Callable[[], bool] = lambda: False, poll: float = 0.2) -> Iterator[Document]:
    """All events, then new ones as they come, until ``stop()`` holds and everything was read."""
    return (line for line in follow_lines(path, stop, poll) if "event" in line)
