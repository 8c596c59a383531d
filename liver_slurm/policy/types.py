"""Facts about a run that policies see and the coordinator keeps."""

from __future__ import annotations

from dataclasses import dataclass

from liver_slurm.parallel.layout import Layout


@dataclass(frozen=True)
class ResizeGoal:
    """An explicit request: a layout, or a number of workers; ``at_step`` -1: as soon as possible."""

    number: int
    layout: Layout | None
    workers: int
    at_step: int = -1
    failures: int = 0
    give_back: bool = False
    """Guaranteed workers that it leaves out go, and their nodes are given back."""


@dataclass(frozen=True)
class Backoff:
    """The very same target world is not tried again before ``until``."""

    layout: Layout
    members: tuple[str, ...]
    until: float
    failures: int


@dataclass(frozen=True)
class Measured:
    """What a past reconfiguration took, in seconds."""

    generation: int
    added: int
    """Workers that the new world has more than the old one."""
    prepare_s: float
    exposed_s: float
    """Time that training stood still for it."""
