"""Signals that announce a preemption, routed as bytes into a pipe that the control thread reads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
"""Signals that say that the worker will go away: a cluster may send any of them before it takes a node."""
SUSPENDED, RESUMED = signal.SIGTSTP, signal.SIGCONT
"""``scontrol suspend`` sends the first, and SIGSTOP after :data:`SUSPEND_DELAY`; ``resume`` sends the second, which
also comes with every SIGTERM and then means nothing."""
SUSPEND_DELAY = 2.0
"""Seconds between Slurm's SIGTSTP and its SIGSTOP."""


def signal_pipe() -> int:
    """Route this process's notice signals into a pipe; call it in the main thread, before anything slow.

    Python runs a handler only when the main thread comes back from C, which in a collective may be too late; the
    wake-up descriptor is written at once.

    Returns:
        the read end; it yields a byte, the signal's number, for each signal that came.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _leave_to_the_pipe(*NOTICES, SUSPENDED, RESUMED)
    return read


def while_starting(leave: Callable[[str], None]) -> None:
    """Have a notice signal call ``leave`` with its name, for as long as nobody reads the pipe; see :func:`started`.

    Imports take seconds, in which the main thread comes back to Python often.
    """
    for number in NOTICES:
        signal.signal(number, lambda got, _: leave(signal.Signals(got).name))


def started() -> None:
    """Let notice signals be bytes in the pipe again, and nothing else."""
    _leave_to_the_pipe(*NOTICES)


def _leave_to_the_pipe(*numbers: signal.Signals) -> None:
    for number in numbers:
        signal.signal(number, lambda *_: None)
