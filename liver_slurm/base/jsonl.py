"""Files of JSON lines that one process appends to and others read while it does."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base import archive

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class LineWriter:
    """Appends whole lines: one O_APPEND write each, so that readers and other writers never see a mixture.

    On a network file system that holds for the writers of one machine; there, one writer at a time is to use a file.
    The file is opened by the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # whoever wrote last died within a line; ours must not be glued to it
        return descriptor

    def write(self, document: object) -> None:
        """Append one document as one line.

        Raises:
            OSError: it is not in the file, or only a part of it, which readers pass over; the file is opened again for
                the next one.
        """
        line = msgspec.json.encode(document) + b"\n"
        try:
            if self._descriptor < 0:
                self._descriptor = self._open()
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            self.reopen()
            raise

    def sync(self) -> None:
        """Put on disk what was written.

        Raises:
            OSError: some of it may be lost; the file is opened again for the next line.
        """
        if self._descriptor >= 0:
            try:
                os.fsync(self._descriptor)
            except OSError:
                self.reopen()
                raise

    def reopen(self) -> None:
        """Go on in the file that has the name when the next line comes."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):  # of what was written before; :meth:`sync` says so in time
                os.close(descriptor)

    def close(self) -> None:
        """Close the file."""
        self.reopen()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all documents of a file; what is torn (at the end, or where a writer died) or damaged is passed over."""
    for stream in archive.parts(path):
        for line in stream:
            if (document := _document(line)) is not None:
                yield document


class LineReader:
    """Reads a growing file: each :meth:`read` returns the documents that came since the last one.

    A file that was replaced by another one, or made shorter, is read again like a new one.
    """

    def __init__(self, path: Path, tail: int | None = None) -> None:
        """``tail``: bytes at the end of a file that are read of what it has at first; None: all of it."""
        self._path, self._tail = path, tail
        self._inode: int | None = None
        self._position = 0
        self._rest = b""

    def read(self) -> list[dict[str, Any]]:
        """Return new documents; the file need not be there yet, and a line is held back until its end is there."""
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return []
        earlier: list[bytes] = []
        with stream:
            found = os.fstat(stream.fileno())
            if found.st_ino != self._inode or found.st_size < self._position:
                self._inode, self._rest = found.st_ino, b""
                self._position = 0 if self._tail is None else max(0, found.st_size - self._tail)
                earlier = [] if self._tail is not None else archive.earlier_lines(self._path)
            stream.seek(self._position)
            chunk = stream.read()
        self._position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [document for line in (*earlier, *lines) if (document := _document(line)) is not None]


def follow_lines(path: Path, stop: Callable[[], bool], poll: float = 0.2) -> Iterator[dict[str, Any]]:
    """Yield all documents of a file, then new ones as they come, until ``stop()`` holds and everything was read.

    The file may not be there yet. ``poll``: seconds between looks.
    """
    reader = LineReader(path)
    while True:
        last = stop()  # asked first: what was written before it held is still read
        yield from (documents := reader.read())
        if last:
            return
        if not documents:
            time.sleep(poll)


def read_tail(path: Path, size: int = 1 << 16) -> list[dict[str, Any]]:
    """Return the documents in the last ``size`` bytes of a file."""
    try:
        length = path.stat().st_size
    except FileNotFoundError:
        return []
    lines = _read_from(path, max(0, length - size)).split(b"\n")
    return [document for line in lines if (document := _document(line)) is not None]


def _read_from(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(position)
            return stream.read()
    except FileNotFoundError:
        return b""


def _document(line: bytes) -> dict[str, Any] | None:
    """Return what a line says; None: it is torn or damaged, as one with a whole number of more than 64 bits is."""
    try:
        document = _decode(line)
    except msgspec.DecodeError:
        return None
    return None if _has_too_long(document.values()) else document


def _has_too_long(values: Iterable[object]) -> bool:
    """Return whether a whole number is among values that no line of ours has, and that columns have no room for."""
    for value in values:
        if isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 63:
                return True
        elif isinstance(value, list | dict) and _has_too_long(value.values() if isinstance(value, dict) else value):
            return True
    return False
