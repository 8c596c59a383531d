"""Interrupting a command at a moment of its life, and looking at how it ends and what it leaves."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PYTHON = [sys.executable, "-m"]
LINES = {signal.SIGINT: "liver-slurm: interrupted", signal.SIGTERM: "liver-slurm: terminated"}
MARK = "LIVER_TEST_MARK"
HUNG = 60.0
"""Seconds after which a command that was interrupted is taken to hang: it is made to say where, and killed."""
VANISH = 2.0
"""Seconds that the kernel may take to remove processes that were killed, on a machine that is quick and idle."""


@dataclass(frozen=True)
class Command:
    """A long command of the product."""

    name: str
    arguments: Callable[[Path], Sequence[str]]
    """The command line after ``python -m``, for a fresh folder."""
    says: str = r"(?!)"
    """Pattern of the lines that it prints on stderr before it is interrupted; by default none."""
    adds: str = ""
    """Pattern of what may follow in the line of an interrupted command."""
    hands_on: bool = False
    """Whether it hands its environment on to what it leaves on purpose: a job of Slurm's."""
    longest: float = 20.0
    """Seconds of its life in which it is interrupted, if it lives so long."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    at: float
    """Seconds from its start to the signal."""
    armed: bool
    """Whether our own code ran when the signal came; before that it is the interpreter's, which is starting."""
    finished: bool
    """Whether it had ended before the signal came."""
    seconds: float
    """From the signal to the end of its process."""
    code: int
    err: str
    left: tuple[str, ...]
    """Processes and files that are still there."""

    def problems(self, command: Command, number: signal.Signals, limit: float) -> list[str]:
        """What is wrong with it; nothing if it had done its work before the signal reached it."""
        found = [f"left: {one}" for one in self.left]
        if self.seconds > limit:
            found.append(f"took {self.seconds:.1f} s, allowed {limit:.1f} s")
        if self.finished or not self.armed:
            return found
        if self.code == 0 and not self.err.count("liver-slurm:"):  # it had done its work as the signal came
            return found
        if self.code != 128 + number:
            found.append(f"code {self.code}")
        lines = [line for line in self.err.splitlines() if not re.fullmatch(command.says, line)]
        if len(lines) != 1 or not re.fullmatch(re.escape(LINES[number]) + f"({command.adds})?", lines[0]):
            found.append(f"stderr: {self.err[-3000:]!r}")
        return found


def interrupt(
    command: Command,
    folder: Path,
    at: float | Callable[[psutil.Process], object],
    number: signal.Signals = signal.SIGINT,
    group: bool = True,
    again: float | None = None,
) -> Outcome:
    """Start a command in ``folder``, signal it, and wait for its end.

    Args:
        at: seconds after its start; or a condition of its process, which is waited for.
        group: signal all processes of its group, as a terminal does; else its first process alone.
        again: seconds after which a second signal follows.
    """
    with _started(command, folder) as (process, mark):
        begun = time.monotonic()
        if callable(at):
            wait_until(lambda: at(psutil.Process(process.pid)), f"{command.name} gets there", 120.0)
        else:
            time.sleep(at)
        children = _descendants(process.pid)
        finished, armed = process.poll() is not None, is_armed(process.pid)
        signalled = time.monotonic()
        if not finished:
            (os.killpg if group else os.kill)(process.pid, number)
            if again is not None:
                time.sleep(again)
                if process.poll() is None:
                    process.send_signal(number)
        code = _wait(process)
        ended = time.monotonic()
        left = [*_processes_left(process.pid, mark, folder, children), *_files_left(process.pid, folder)]
        if code == 0:  # what it leaves then is its work
            left = []
        return Outcome(
            signalled - begun,
            armed,
            finished,
            0.0 if finished else ended - signalled,
            code,
            (folder / "stderr").read_text(errors="replace"),
            tuple(left),
        )


def usual_seconds(command: Command, folder: Path) -> float:
    """How long the command takes when nobody interrupts it, but for ``command.longest`` at most."""
    with _started(command, folder) as (process, mark):
        begun = time.monotonic()
        try:
            process.wait(timeout=command.longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            _wait(process)
        seconds = min(time.monotonic() - begun, command.longest)
        _processes_left(process.pid, mark, folder, [])
        return seconds


def slowness() -> float:
    """How much longer a command that does little takes than on a quick and idle machine; at least 1."""
    begun = time.monotonic()
    subprocess.run([*PYTHON, "liver_slurm", "--help"], stdout=subprocess.DEVNULL, check=True)
    return max(1.0, (time.monotonic() - begun) / 0.1)


def wait_until(holds: Callable[[], object], what: str, timeout: float) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.005)


def is_armed(pid: int) -> bool:
    """Whether the process catches SIGTERM, which Python does not by itself: our entry point has begun."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)", text, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGTERM - 1))


@contextmanager
def _started(command: Command, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command in a session of its own, and the mark in its environment; killed at the end if it still runs."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "home").mkdir()
    mark = secrets.token_hex(8)
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "PYTHONFAULTHANDLER": "1",
        **({} if command.hands_on else {MARK: mark}),
        **command.environment,
    }
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [*PYTHON, *command.arguments(folder)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            cwd=folder,
            start_new_session=True,
            preexec_fn=default_signals,
        )
    try:
        yield process, mark
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def default_signals() -> None:
    """What a terminal's foreground process inherits, whatever this one has: `nohup make test &` ignores SIGINT."""
    for number in LINES:
        signal.signal(number, signal.SIG_DFL)


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=HUNG)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints where every thread is
        return process.wait()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _processes_left(pid: int, mark: str, folder: Path, children: list[psutil.Process]) -> list[str]:
    """Those that it had, those of its session, and those that have its mark or its folder; described."""

    def look() -> list[psutil.Process]:
        known = {child.pid for child in children if child.is_running()}
        return [one for one in psutil.process_iter() if _is_ours(one, pid, mark, str(folder), known)]

    begun, allowed = time.monotonic(), VANISH
    while left := look():
        if time.monotonic() - begun > allowed:
            if allowed > VANISH:
                break
            allowed = VANISH * max(slowness(), 1.5)  # asked for only where it matters, as it takes a while itself
        time.sleep(0.02)
    return [_kill(process) for process in left]


def _kill(process: psutil.Process) -> str:
    try:
        described = f"process {process.pid} {process.status()} {' '.join(process.cmdline())[:200]}"
        process.kill()
    except psutil.NoSuchProcess:
        return f"process {process.pid}, which has ended meanwhile"
    return described


def _is_ours(process: psutil.Process, session: int, mark: str, folder: str, known: set[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.pid in known or os.getsid(process.pid) == session:
            return True
        environment = process.environ()
        return environment.get(MARK) == mark or folder in environment.get("SLURM_CONF", "")
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return False


def _files_left(pid: int, folder: Path) -> list[str]:
    """Temporary files, and what is in the memory disk with the process's number in its name."""
    memory = Path("/dev/shm")
    shared = [path for path in memory.iterdir() if re.search(rf"(?<!\d){pid}(?!\d)", path.name)]
    return [str(path) for path in [*(folder / "tmp").iterdir(), *shared]]
