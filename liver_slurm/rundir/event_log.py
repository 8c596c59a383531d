"""The event log of a run, ``events.jsonl``: what happened, when and why."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from liver_slurm.base.jsonl import LineWriter, follow_lines, read_lines
from liver_slurm.rundir.events import Document, Event, UnknownEvent, from_document, to_document

MOST_WAITING = 10_000
"""Events that are kept while the file cannot be written; then the oldest are given up."""


LATEST = 253_402_300_800.0
"""Seconds since the epoch at the end of the year 9999: nothing that is written has a later time."""


class EventLog:
    """Appends events; each is in the file as a whole line or not at all.

    While it cannot be written, as where a disk is full, events wait here and are written later, in their order. Any
    thread may append.
    """

    def __init__(self, path: Path, heard: Callable[[Event], object] | None = None) -> None:
        """``heard``: gets each event when it happens."""
        self._lines, self._heard = LineWriter(path), heard
        self._waiting: deque[Document] = deque(maxlen=MOST_WAITING)
        self._writing = threading.Lock()
        self.trouble = ""
        """Why events wait; empty: none does."""

    @property
    def waiting(self) -> int:
        """Events that are not in the file yet."""
        return len(self._waiting)

    def append(self, event: Event) -> Document:
        """Append one event, with the time; returns what is written, now or later."""
        event = msgspec.structs.replace(event, time=time.time())
        document = to_document(event)
        self._waiting.append(document)
        self.flush()
        if self._heard is not None:
            self._heard(event)
        return document

    def flush(self) -> None:
        """Try to write the events that wait."""
        with self._writing:
            try:
                while self._waiting:
                    self._lines.write(self._waiting[0])
                    self._waiting.popleft()
                self.trouble = ""
            except OSError as error:
                self.trouble = str(error.strerror)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_events(path: Path) -> Iterator[Event | UnknownEvent]:
    """Return all events so far."""
    return map(from_document, read_documents(path))


def read_documents(path: Path) -> Iterator[Document]:
    """Return all events so far as they stand in the file, with keys that this version does not know."""
    return filter(is_event, read_lines(path))


def follow_documents(path: Path, stop: Callable[[], bool] = lambda: False, poll: float = 0.2) -> Iterator[Document]:
    """Return all events, then new ones as they come, until ``stop()`` holds and everything was read."""
    return filter(is_event, follow_lines(path, stop, poll))


def is_event(line: Document) -> bool:
    """Return whether a line of the file has the name and the time of an event; a damaged one is passed over."""
    return isinstance(line.get("event"), str) and is_moment(line.get("time"))


def is_moment(value: object) -> bool:
    """Return whether a value may be seconds since the epoch, in a year of four digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LATEST
