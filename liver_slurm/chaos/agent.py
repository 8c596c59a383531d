"""``python -m liver_slurm.chaos.agent FAULT PID [--began TICKS] [--port PORT] [--seconds S]``: strike on this machine.

It prints ``struck`` or ``refused: WHY`` and, for a fault that lasts, ``undone`` when it is over: after S seconds, or as
soon as its standard input ends. So whatever becomes of the command that started it, nothing stays in force.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Callable

from liver_slurm.base.faults import BLINK, OUTSIDE, Fault, NotTheProcess, Victim

STRUCK, REFUSED, UNDONE = "struck", "refused", "undone"


def strike(victim: Victim, fault: Fault) -> tuple[str, Callable[[], None]]:
    """Do a fault to a process.

    Returns:
        what there is to say of it, and what undoes it.

    Raises:
        NotTheProcess: it has ended meanwhile, or cannot be reached.
    """
    if fault is Fault.KILL:
        victim.send(signal.SIGKILL)
    elif fault is Fault.PREEMPT:
        victim.send(signal.SIGTERM)  # what a scheduler sends first
    elif fault is Fault.CUT:
        count = victim.cut()
        return f"{count} connection{'' if count == 1 else 's'}", _nothing
    elif fault is Fault.DISK_FULL:
        return "", victim.limit_files()
    else:
        victim.send(signal.SIGSTOP)
        return "", lambda: _go_on(victim)
    return "", _nothing


def _nothing() -> None:
    """Undo a fault that is over at once."""


def _go_on(victim: Victim) -> None:
    if victim.alive():
        victim.send(signal.SIGCONT)


def _hold(victim: Victim, fault: Fault, seconds: float) -> None:
    """Keep a fault in force for a while, or until standard input ends."""
    deadline, running = time.monotonic() + seconds, False
    while (left := deadline - time.monotonic()) > 0 and victim.alive():
        if fault is Fault.DELAY:
            left = min(left, BLINK)
        if select.select([sys.stdin], [], [], min(left, 1.0))[0]:
            return  # nothing is ever written there: it has ended
        if fault is Fault.DELAY:
            running = not running
            victim.send(signal.SIGCONT if running else signal.SIGSTOP)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m liver_slurm.chaos.agent")
    parser.add_argument("fault", type=Fault, choices=OUTSIDE)
    parser.add_argument("pid", type=int)
    parser.add_argument("--began", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--detach", action="store_true", help="be no child of the caller, who may kill its own")
    return parser.parse_args()


def main() -> int:
    """Strike as the arguments say; returns 0, or 1 if the process was not the one that is meant."""
    options = _arguments()
    if options.began is None and options.port is None:
        print(f"{REFUSED}: nothing says which process {options.pid} has to be", flush=True)
        return 1
    if options.detach and os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        victim = Victim(options.pid, options.began, options.port)
    except NotTheProcess as error:
        print(f"{REFUSED}: {error}", flush=True)
        return 1
    undo: Callable[[], None] = _nothing
    try:
        said, undo = strike(victim, options.fault)
        print(f"{STRUCK}{': ' if said else ''}{said}", flush=True)
        if undo is not _nothing:
            _hold(victim, options.fault, options.seconds)
    except NotTheProcess as error:
        print(f"{REFUSED}: {error}", flush=True)
        return 1
    finally:
        undo()
        victim.close()
    if undo is not _nothing:
        print(UNDONE, flush=True)
    return 0


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # by way of what undoes the fault


if __name__ == "__main__":
    sys.exit(main())
