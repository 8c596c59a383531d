"""Which fault comes next, at whom, and why: a function of seed, number and targets. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from liver_slurm.base.faults import OUTSIDE, Fault

Role = Literal["live", "standby", "coordinator"]
ROLES: tuple[Role, ...] = ("live", "standby", "coordinator")

LASTS: dict[Fault, tuple[float, float]] = {
    Fault.STOP: (5.0, 20.0),
    Fault.DELAY: (5.0, 20.0),
    Fault.DISK_FULL: (5.0, 20.0),
    Fault.PREEMPT: (20.0, 60.0),
}
"""Seconds that a fault lasts, at least and at most; those that are not here are over at once."""
SPREAD = 0.5
"""Share of the mean gap by which a gap between two strikes may differ from it."""


@dataclass(frozen=True)
class Target:
    """One process of the run, as the coordinator has it."""

    name: str
    """The worker's, or ``coordinator``."""
    role: Role
    """``live``: a member of the live world, whichever job it came from; ``standby``: a worker in no world."""
    host: str
    pid: int
    began: int | None
    """When it began, see :func:`liver_slurm.base.faults.started`; None: proven by its port."""
    port: int | None = None
    """Where it listens."""
    job_id: str = ""
    """Its Slurm job; for plain processes the launcher's name for it."""
    reclaimable: bool = False
    """It runs in a standby job, which the scheduler may take back."""


@dataclass(frozen=True)
class Program:
    """What was asked for."""

    seed: int
    per_second: float
    faults: tuple[Fault, ...] = OUTSIDE
    roles: tuple[Role, ...] = ROLES


@dataclass(frozen=True)
class Strike:
    """One fault at one target."""

    number: int
    fault: Fault
    target: Target
    seconds: float
    """How long it lasts; 0.0: it is over at once."""


def gap(program: Program, number: int) -> float:
    """Return the seconds before strike ``number``, counted from 0: the mean gap, give or take half of it."""
    return _draw(program, number, "gap").uniform(1 - SPREAD, 1 + SPREAD) / program.per_second


def choose(program: Program, number: int, targets: Iterable[Target]) -> tuple[Strike | None, str]:
    """Choose strike ``number`` among the targets that are there now.

    The fault is drawn first, among those for which there is a target, then the target. The same seed, number and
    targets give the same strike, in whatever order the targets come.

    Returns:
        the strike, or None if there is nobody to strike, and the reason.
    """
    allowed = sorted((one for one in targets if one.role in program.roles), key=lambda one: one.name)
    possible = {fault: fitting for fault in program.faults if (fitting := [t for t in allowed if _fits(fault, t)])}
    if not possible:
        return None, f"no target: {len(allowed)} processes, of which none fits {_words(program.faults)}"
    draw = _draw(program, number, "strike")
    fault = draw.choice(list(possible))
    target = draw.choice(possible[fault])
    low, high = LASTS.get(fault, (0.0, 0.0))
    seconds = round(draw.uniform(low, high), 1)
    reason = f"seed {program.seed}: {fault.value} of {len(possible)} faults, {target.name} of {len(possible[fault])}"
    return Strike(number, fault, target, seconds), reason


def _fits(fault: Fault, target: Target) -> bool:
    return fault is not Fault.PREEMPT or target.reclaimable


def _draw(program: Program, number: int, what: str) -> random.Random:
    return random.Random(f"{program.seed} {number} {what}")  # a text is hashed alike by every version of Python


def _words(faults: Sequence[Fault]) -> str:
    return ", ".join(fault.value for fault in faults)


def parse_rate(text: str) -> float:
    """Read strikes per second from ``1/min``, ``30/h`` or ``0.5/s``.

    Raises:
        ValueError: it is not a rate, or not above zero.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)/(s|min|h)", text.strip().lower(), re.ASCII)
    rate = float(match[1]) / {"s": 1.0, "min": 60.0, "h": 3600.0}[match[2]] if match else 0.0
    if rate <= 0:
        raise ValueError(f"{text!r} is no rate; allowed: a number per s, min or h, such as 1/min")
    return rate


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read faults from ``kill,stop``, each once.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    known = {fault.value: fault for fault in OUTSIDE}
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise ValueError(f"{', '.join(unknown) or 'nothing'} is no fault; allowed: {', '.join(known)}")
    return tuple(dict.fromkeys(known[word] for word in words))


def parse_roles(text: str) -> tuple[Role, ...]:
    """Read roles from ``live,standby,coordinator``, each once.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in ROLES]
    if unknown or not words:
        raise ValueError(f"{', '.join(unknown) or 'nothing'} is no target; allowed: {', '.join(ROLES)}")
    return tuple(role for role in ROLES if role in words)
