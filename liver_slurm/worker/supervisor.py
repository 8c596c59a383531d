"""The parent of a guaranteed worker: starts it again when it has died, so that its place does not stand empty.

It imports nothing of what could break a worker, tells the coordinator at once that the worker is gone, and begins a new
one, which registers under a name of its own as if it had come just now; so it does for one that the coordinator has
turned away, as it was taken for dead. A worker that was told to leave, or whose node is to go away, is not started
again, and neither is one that never lives for long.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from liver_slurm.base.errors import DECIDED, LAST_WORD, REFUSED, ControlError
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import WorkerEnded
from liver_slurm.rundir.over import is_over
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.worker_names import restarted_name
from liver_slurm.scheduler.local.process import tie_to_parent
from liver_slurm.worker.signals import NOTICES, signal_pipe

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds until a worker is started again: at first, and at most."""
IN_A_ROW = 8
"""Deaths one after the other after which a place is given up."""
WELL = 600.0
"""Seconds after which a worker has lived so long that earlier deaths do not count."""


@dataclass(frozen=True)
class Verdict:
    """Whether a worker that has ended is started again, and why."""

    wait: float | None
    """Seconds until then; None: it is not."""
    reason: str


def judge(code: int, noticed: bool, run_is_over: bool, deaths: int) -> Verdict:
    """Decide about a worker that has ended.

    Args:
        code: its exit code; of a signal the negative number; :data:`DECIDED`: it was told to leave.
        noticed: it or its parent was sent a signal that announces the end of its node or job.
        run_is_over: the run has ended, well or not.
        deaths: how often it has died in a row, this time included.
    """
    if code == DECIDED:
        return Verdict(None, "it was told to leave")
    if noticed:
        return Verdict(None, "its node or job was announced to go away")
    if run_is_over:
        return Verdict(None, "the run is over")
    if deaths >= IN_A_ROW:
        return Verdict(None, f"it has died {deaths} times in a row")
    wait = min(FIRST_WAIT * 2.0 ** (deaths - 1), LONGEST_WAIT)
    return Verdict(wait, f"it is started again in {wait:g} s")


def supervise(run_dir: RunDir, place: str, arguments: Sequence[str]) -> int:
    """Run ``python -m liver_slurm.worker`` with these arguments, again and again; returns the last exit code.

    Args:
        place: name of the first process.
    """
    signals, deaths, count = signal_pipe(), 0, 0
    while True:
        count += 1
        begun, name = time.monotonic(), restarted_name(place, count)
        heard, said = os.pipe()
        options = ["--name", name, "--decided-codes", "--last-word", str(said)]
        worker = subprocess.Popen(
            [sys.executable, "-m", "liver_slurm.worker", *arguments, *options],
            preexec_fn=tie_to_parent(signal.SIGKILL),
            pass_fds=(said,),
        )
        code = worker.wait()
        os.close(said)
        died = code != DECIDED
        deaths = 1 if time.monotonic() - begun > WELL else deaths + 1
        how = (
            "turned away"
            if code == REFUSED
            else f"exit code {code}"
            if code >= 0
            else f"killed by {signal.Signals(-code).name}"
        )
        reason = _last_word(heard) or how
        noticed = _noticed(signals, 0.0)
        if died and not noticed and code != REFUSED:  # of that the coordinator knows
            _tell(run_dir, WorkerEnded(worker=name, reason=reason, pid=worker.pid))
        verdict = judge(code, noticed, died and is_over(run_dir), deaths)
        print(f"{name}, process {worker.pid}, has ended, {how}: {verdict.reason}", file=sys.stderr, flush=True)
        if verdict.wait is None or _noticed(signals, verdict.wait):
            if not died:
                return 0
            _tell(run_dir, WorkerEnded(worker=name, reason=reason, pid=worker.pid, again=False))
            return code if code >= 0 else 128 - code


def _last_word(heard: int) -> str:
    """Read why a worker that has ended failed, and close the pipe; empty: it did not say."""
    os.set_blocking(heard, False)
    try:
        return os.read(heard, LAST_WORD).decode(errors="replace")
    except BlockingIOError:  # a process that it has left behind may still have the other end
        return ""
    finally:
        os.close(heard)


def _tell(run_dir: RunDir, message: WorkerEnded) -> None:
    try:
        request(run_dir, message, timeout=2.0)
    except ControlError as error:
        # It is away for a moment, and hears of it from the others, or from the next one with this name.
        print(f"the coordinator was not told of it: {error}", file=sys.stderr, flush=True)


def _noticed(signals: int, seconds: float) -> bool:
    """Wait for a signal that announces the end for at most so long; True: one has come."""
    end = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([signals], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        if any(number in NOTICES for number in os.read(signals, 64)):
            return True
