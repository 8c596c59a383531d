"""Directives for tests with one thread: where the training thread would wait, it raises."""

from __future__ import annotations

import threading

from liver_slurm.worker.directives import Directives


class Waits(Exception):
    """The training thread would wait here."""


class _Impatient(threading.Condition):
    def wait(self, timeout: float | None = None) -> bool:
        raise Waits


def directives() -> Directives:
    """Return directives whose waits raise :class:`Waits`."""
    return Directives(_Impatient())


def passes(box: Directives, step: int) -> bool:
    """Whether training goes on with ``step`` steps completed, instead of stopping or waiting there."""
    try:
        return type(box.at_boundary(step)).__name__ == "Train"
    except Waits:
        return False
