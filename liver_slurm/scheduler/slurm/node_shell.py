"""A short job on one node of a partition, to talk to its one process in lines; bounded in time, always cleaned up."""

from __future__ import annotations

import math
import queue
import secrets
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from liver_slurm.scheduler.slurm.command import first_line, outside_environment

_BUSY = ("unable to allocate resources: requested nodes are busy", "immediate execution impossible", "nodes are busy")
_MINUTES = 3
"""Time limit of the job: it ends by then whatever becomes of us."""
_END = 5.0
"""Seconds that srun has to end its job when it is told to."""


@dataclass(frozen=True)
class Place:
    """Where to look."""

    partition: str
    gpus: int = 0
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None


def job_name() -> str:
    """Return a name for the jobs of one look-around, by which they can be found and ended."""
    return f"liver-doctor-{secrets.token_hex(4)}"


class NodeDialogue:
    """A command that runs on one free node, and answers lines with lines.

    srun keeps the job alive only while it lives itself, so a terminated :class:`NodeDialogue` leaves no job behind.
    """

    def __init__(
        self,
        place: Place,
        script: str,
        name: str,
        wait: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start asking for a node, for ``wait`` seconds; ``script`` is what bash runs there."""
        self.place = place
        self._process = subprocess.Popen(
            srun_arguments(place, script, name, wait),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=outside_environment(environment),
            start_new_session=True,  # Ctrl-C is ours to handle: srun would only ask for a second one
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._errors.extend, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def read(self, timeout: float) -> str | None:
        """Return the next line; None: none came in time, or there will be no more."""
        try:
            return self._lines.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None

    def write(self, line: str) -> bool:
        """Send a line; False: nobody is there to read it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def hang_up(self) -> None:
        """Say that there is no more to read; a command that waits for that ends."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            return  # it has ended already

    def wait(self, timeout: float) -> bool:
        """Return whether it has ended by then."""
        try:
            self._process.wait(timeout=max(0.0, timeout))
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End the command and its job."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join(timeout=_END)

    def why(self) -> tuple[str, bool]:
        """Return what srun or the command said when it ended, and whether there was just no free node; after
        :meth:`close`."""
        return explain(self._errors)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)


def explain(errors: Sequence[str]) -> tuple[str, bool]:
    """Return what srun's standard error means.

    It is the reason in one line, and whether it is that there was no free node.
    """
    text = "".join(errors)
    if any(fragment in text.lower() for fragment in _BUSY):
        return "no free node", True
    # What the command said last says more than srun's own word that it ended.
    spoken = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("srun:", "slurmstepd:"))
    ]
    return (spoken[-1] if spoken else first_line(text)), False


def srun_arguments(place: Place, script: str, name: str, wait: float) -> list[str]:
    """Return the command line that runs ``script`` on one node that is free within ``wait`` seconds."""
    gres = f"gpu:{place.gpus}" if place.gpus else None
    options = {
        "partition": place.partition,
        "job-name": name,
        "immediate": str(max(1, math.ceil(wait))),
        "time": str(_MINUTES),
        "nodes": "1",
        "ntasks": "1",
        "chdir": "/",
        "gres": gres,
        "account": place.account,
        "qos": place.qos,
        "constraint": place.constraint,
        "exclude": place.exclude,
    }
    given = [f"--{key}={value}" for key, value in options.items() if value]
    return ["srun", *given, "--quiet", "--unbuffered", "bash", "-c", script]
