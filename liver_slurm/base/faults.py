"""The one vocabulary of faults: what ``liver-slurm chaos`` and the fault tests do to processes, and its undoing.

A fault is done from outside, to a process that is held as a :class:`Victim`, or by a process to itself at a point of
its code (:mod:`liver_slurm.worker.fault_injection`). Both use what is here, so tests and staging clusters see the same.
Needs Linux: pidfds, ``/proc`` and prlimit.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path


class Fault(str, Enum):
    """A kind of fault; the value is its word on command lines, in ``LIVER_FAULT`` and in journals."""

    KILL = "kill"
    """SIGKILL."""
    STOP = "stop"
    """SIGSTOP, and SIGCONT after a while: it stands still and holds everything that it has."""
    FAIL = "fail"
    """An exception, raised at a point of the process's own code."""
    CUT = "cut"
    """All its TCP connections end, on both sides; it may make new ones."""
    DELAY = "delay"
    """It is late: it sleeps at a point of its code or, from outside, runs every other tenth of a second."""
    DISK_FULL = "disk-full"
    """No file that it writes may become larger; nothing is filled, the limit is the process's own."""
    PREEMPT = "preempt"
    """The scheduler takes its node back: it is noticed, and has its grace time."""
    CORRUPT = "corrupt"
    """A bit of what has arrived, or of what is kept, is another one."""
    IGNORE = "ignore"
    """A message, a signal or an update is dropped."""
    DOUBLE = "double"
    """An update is made twice."""


class Defect(str, Enum):
    """A way in which a new world's state may be another than the old one's; none of them gets past the commit.

    A worker does it to what it has of a target world, at a point of its code; see
    :mod:`liver_slurm.worker.fault_injection`. The value is its word in ``LIVER_FAULT``.
    """

    UNLOADED = "unloaded"
    """A parameter is what its memory was before: nobody has loaded it."""
    CORRUPT = "corrupt"
    """A bit is another one."""
    PERMUTED = "permuted"
    """A box has the right values at the wrong places."""
    SWAPPED = "swapped"
    """Two boxes have each other's values."""
    STALE = "stale-moment"
    """A moment is that of an update before."""
    STEP_RESET = "step-reset"
    """The optimizer counts its updates from 0 again."""
    CAST = "cast"
    """Values went through a type of less precision."""
    DROPPED = "dropped-name"
    """A tensor of the state is in nobody's list."""
    WRONG_EXPERT = "wrong-expert"
    """Experts are where others belong."""
    WRONG_POSITION = "wrong-position"
    """Training would go on at another sample."""


OUTSIDE = (Fault.KILL, Fault.STOP, Fault.PREEMPT, Fault.DELAY, Fault.CUT, Fault.DISK_FULL)
"""What can be done to a process without its help."""
INSIDE = (
    Fault.KILL, Fault.STOP, Fault.FAIL, Fault.CUT, Fault.DELAY, Fault.DISK_FULL, Fault.CORRUPT, Fault.IGNORE,
    Fault.DOUBLE,
)  # fmt: skip
"""What a process can do to itself at a point of its code."""

BLINK = 0.1
"""Seconds for which a delayed process is stopped, and then runs, in turns."""
_PIDFD_GETFD = 438
"""Number of the system call, on every architecture; Python has no function for it."""
_LISTENING = "0A"
"""State of a listening socket in ``/proc/net/tcp``."""
_libc = ctypes.CDLL(None, use_errno=True)


class NotTheProcess(Exception):
    """The process that was meant is not there, or its number is another's by now."""


def started(pid: int) -> int:
    """Return when a process began, in clock ticks since the machine's start; with its number, that names it for good.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    return int(text.rpartition(b")")[2].split()[19])  # the name before the bracket may have spaces in it


def listens(pid: int, port: int) -> bool:
    """Return whether a process holds a TCP socket that listens on the port."""
    held = {name for _, name in _sockets(pid)}
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            at = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == _LISTENING and at == port and f"socket:[{fields[9]}]" in held:
                return True
    return False


def _sockets(pid: int) -> list[tuple[int, str]]:
    """Return each descriptor of a process that is a socket, with the kernel's name of it."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(entry)
        except FileNotFoundError:
            continue  # closed since
        if name.startswith("socket:"):
            found.append((int(entry.name), name))
    return found


class Victim:
    """A process that was proven to be the one that is meant; it is held by a pidfd until :meth:`close`."""

    def __init__(self, pid: int, began: int | None = None, port: int | None = None) -> None:
        """Open the process.

        Args:
            pid: its number.
            began: what :func:`started` said of it, to whoever says that it is the one.
            port: port on which it listens, where that is the proof.

        Raises:
            NotTheProcess: there is none, it began at another time, does not listen there, or is another user's.
        """
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise NotTheProcess(f"there is no process {pid}") from None
        try:
            # Looked at after the pidfd was opened: if it fits now, then the pidfd cannot be of an earlier process.
            self._prove(began, port)
        except BaseException:
            self.close()
            raise

    def _prove(self, began: int | None, port: int | None) -> None:
        try:
            since, owner = started(self.pid), Path(f"/proc/{self.pid}").stat().st_uid
            if owner != os.getuid():
                raise NotTheProcess(f"process {self.pid} is another user's")
            if began is not None and since != began:
                raise NotTheProcess(f"process {self.pid} began at another time: its number was given away")
            if port is not None and not listens(self.pid, port):
                raise NotTheProcess(f"process {self.pid} does not listen on port {port}")
        except (ProcessLookupError, FileNotFoundError):
            raise NotTheProcess(f"there is no process {self.pid}") from None

    def close(self) -> None:
        """Let go of the process."""
        os.close(self._pidfd)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process and no other.

        Raises:
            NotTheProcess: it has ended.
        """
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            raise NotTheProcess(f"process {self.pid} has ended") from None

    def cut(self) -> int:
        """End all its established TCP connections; returns how many.

        Raises:
            NotTheProcess: it has ended, or the kernel does not let us take its sockets.
        """
        count = 0
        for descriptor, _ in _sockets(self.pid):
            taken = _libc.syscall(_PIDFD_GETFD, self._pidfd, descriptor, 0)
            if taken < 0:
                number = ctypes.get_errno()
                if number == 9:  # closed since
                    continue
                raise NotTheProcess(f"the sockets of process {self.pid} cannot be taken: {os.strerror(number)}")
            with socket.socket(fileno=taken) as one:
                count += _end(one)
        return count

    def limit_files(self) -> Callable[[], None]:
        """Let none of its files become larger; returns what takes that back.

        Raises:
            NotTheProcess: it has ended.
        """
        try:
            soft, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0, hard))
        except ProcessLookupError:
            raise NotTheProcess(f"process {self.pid} has ended") from None

        def restore() -> None:
            if self.alive():
                resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (soft, hard))

        return restore

    def alive(self) -> bool:
        """Return whether the process is still there, a dead one that nobody has waited for included."""
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        return True


def _end(one: socket.socket) -> bool:
    """End a socket's connection, on both sides; False: it is not TCP, or has none."""
    if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
        return False
    try:
        one.getpeername()
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False  # it listens, or has ended by itself
    return True


def supported() -> bool:
    """Return whether this machine has what :class:`Victim` needs."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")
