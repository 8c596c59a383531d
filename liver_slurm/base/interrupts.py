"""Ending a command on Ctrl-C or SIGTERM: within seconds, in one line, with exit code 130 or 143, and nothing left.

A process that :func:`run_command` runs is ended in one of two ways:

- As a rule on the spot: everything that it has started is killed, the files of :func:`temporary` are removed, the line
  is said, and the process exits. Nothing is raised, for an exception that may come anywhere is lost in a destructor or
  in a library's ``except``, and is a traceback in an import, in a thread pool's end or in the interpreter's.
- In a block of :func:`orderly`, where there is more to undo, by a KeyboardInterrupt in the main thread; once, so that
  what it sets in motion is not interrupted. After :data:`PATIENCE` seconds, or by another Ctrl-C, the process is ended
  on the spot after all.

Python runs a signal's handler only when the main thread comes back from C, where a collective may hold it for minutes.
Hence a thread that the wake-up descriptor tells of each signal: it ends the process if the main thread does not. (Only
C code that lets no other thread run either, which none does for long, is waited for.)

A process that was started with SIGINT ignored, as by ``nohup make test &``, goes on ignoring it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PATIENCE = 3.5
"""Seconds that :func:`orderly` blocks have for what they undo."""
NATIVE = 0.5
"""Seconds after which a main thread that has not run its handler is taken to be held in C."""
SAME_PRESS = 1.0
"""Seconds in which a second signal is the same Ctrl-C: a terminal and a program that passes it on both send one."""
_END = 1.0
"""Seconds that the kernel may take to remove processes that were killed."""
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command."""

    def __init__(self, number: int, text: str = "") -> None:
        """``text``: what else there is to say, at the end of the one line."""
        super().__init__(text)
        self.number = signal.Signals(number)


def number_of(error: KeyboardInterrupt) -> signal.Signals:
    """Return the signal behind an exception; a KeyboardInterrupt that is not ours comes from SIGINT."""
    return error.number if isinstance(error, Interrupted) else signal.SIGINT


def run_command(work: Callable[[], int]) -> NoReturn:
    """Run a command as this process: exit with the code that ``work`` returns, or as described above.

    ``work`` imports what is slow to import by itself, so that Ctrl-C is heeded meanwhile. There are no destructors and
    no exit handlers, which a signal could meet: what ``work`` began is closed when it returns.
    """
    _guard.arm()
    try:
        code = work()
    except KeyboardInterrupt as error:
        code = say(error)
    _guard.leave(code)


def say(error: KeyboardInterrupt) -> int:
    """Say in one line that the command was interrupted; returns the exit code."""
    _guard.claim()
    print(_line(number_of(error), str(error)), file=sys.stderr)
    return 128 + number_of(error)


def interrupted() -> bool:
    """Return whether a signal is ending the command; for what is not to be said any more."""
    return _guard.number is not None


@contextmanager
def orderly() -> Iterator[None]:
    """Run a block that undoes what it has done when SIGINT or SIGTERM raises KeyboardInterrupt in it.

    It may be used in any program, from its main thread; elsewhere, it changes nothing.
    """
    with _guard.orderly():
        yield


@contextmanager
def temporary(*paths: Path, keep_failed: bool = False) -> Iterator[None]:
    """Run a block that may make these files and folders; they are removed at its end, however it ends.

    ``keep_failed``: not if it ends by an error, which may speak of them.
    """
    kept = False
    _guard.paths += paths
    try:
        yield
    except Exception:
        kept = keep_failed
        raise
    finally:
        for path in paths:
            if not kept:
                _remove(path)
            _guard.paths.remove(path)


@contextmanager
def temporary_folder(prefix: str, where: Path | None = None, keep_failed: bool = False) -> Iterator[Path]:
    """Make a fresh folder, as with :func:`temporary`; by default where temporary files are made."""
    import secrets
    import tempfile

    path = Path(where or tempfile.gettempdir()) / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    with temporary(path, keep_failed=keep_failed):
        path.mkdir(mode=0o700)
        yield path


def end_descendants() -> None:
    """Kill every process that descends from this one, and wait until none is left."""
    deadline = time.monotonic() + _END
    while (living := _descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in living:
            with suppress(ProcessLookupError):  # ended by itself in between
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent dies, so that they can be found and ended."""
    import ctypes

    subreaper = 36  # PR_SET_CHILD_SUBREAPER
    if ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class _Guard:
    """What this process does about signals."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self._armed = self._leaving = False
        self._blocks = 0
        """Blocks of :func:`orderly` that the main thread is in."""
        self.number: signal.Signals | None = None
        self._since = 0.0
        """The signal that ends the command, and when it came."""
        self._process = 0

    def arm(self) -> None:
        """Heed signals from now on; the handlers come first, as every import takes its time."""
        self._handle()
        import threading

        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._ending = threading.Lock()
        self._owner = 0
        self._armed = True
        threading.Thread(target=self._watch, args=(read,), name="interrupts", daemon=True).start()
        unraisable = sys.unraisablehook
        sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, Interrupted) else unraisable(lost)
        adopt_orphans()

    def _handle(self) -> dict[signal.Signals, Any]:
        """Install the handlers; what each signal's was before."""
        self._process = os.getpid()
        before = {number: signal.getsignal(number) for number in _WORDS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        return before

    @contextmanager
    def orderly(self) -> Iterator[None]:
        import threading

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {} if self._armed or self._blocks else self._handle()
        self._blocks += 1
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._blocks -= 1
            if before:
                self.number = None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            os._exit(128 + number)  # a child that was forked and is not yet the program that it will be
        if self._leaving:
            return
        now = time.monotonic()
        if self.number is not None:
            if self._armed and now - self._since > SAME_PRESS:
                self._end(self.number)
            return
        self.number, self._since = signal.Signals(number), now
        if self._blocks:
            raise Interrupted(number)
        self._end(self.number)

    def _watch(self, wakeups: int) -> None:
        """See to it that a signal ends the process, whatever the main thread does."""
        while True:
            came = os.read(wakeups, 64)
            ending = [number for number in _WORDS if number in came]
            if ending:
                time.sleep(NATIVE)
                if self._blocks:
                    time.sleep(PATIENCE - NATIVE)
                self._end(self.number or ending[0])

    def claim(self) -> None:
        """Take upon this thread to end the process; another one that wants to waits here for its end."""
        if not self._armed:
            return
        import threading

        if self._ending.acquire(blocking=False):
            self._owner = threading.get_ident()
        elif self._owner != threading.get_ident():
            while True:
                time.sleep(60.0)

    def _end(self, number: signal.Signals) -> NoReturn:
        """End the process on the spot."""
        self.claim()
        try:
            # Nobody else has anything to say any more: threads see their peers die, and complain.
            stderr = os.dup(2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            end_descendants()
            os.write(stderr, f"{_line(number)}\n".encode())
            for path in self.paths:
                _remove(path)
        finally:
            os._exit(128 + number)

    def leave(self, code: int) -> NoReturn:
        """Exit: the work is done, or was undone in order."""
        self._leaving = True
        self.claim()
        if self.number is not None:
            end_descendants()
        with suppress(BrokenPipeError):  # the reader has gone: what is left has nowhere to go
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_guard = _Guard()


def _line(number: signal.Signals, text: str = "") -> str:
    return f"liver-slurm: {_WORDS[number]}" + (f": {text}" if text else "")


def _descendants(of: int) -> list[int]:
    """Return the process ids of all that live below a process; from /proc, as nothing may be imported this late."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stream:
                state, parent, *_ = stream.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in (b"Z", b"X"):
            children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    waiting = [of]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
