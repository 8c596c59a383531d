"""Names of workers: made here and taken apart here, and nowhere else.

``live-3``            task 3 of the guaranteed job that began the run
``live-1234-3``       task 3 of guaranteed job 1234, which took the run over from another one
``live-3.2``          the second process of task 3's place: its first has died, and its parent has started it again
``standby-1234-0``    task 0 of standby job 1234
``standby-local-2``   the third standby of a run of plain processes

Workers that people start by hand may have any name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

_RESTARTED = re.compile(r"(live-(?:[0-9]+-)?[0-9]+)\.[0-9]{1,9}")
"""What :func:`restarted_name` makes; what people call a worker may have a dot, too."""

MOST_NAMED = 8
"""Workers that one sentence names."""

Role = Literal["live", "standby"]
"""Where a worker was started, as messages say it: in the run's guaranteed job, or in a standby job."""


def named(names: Sequence[str], whose: str = "") -> str:
    """Return the beginning of a sentence on workers that something has happened to: ``live-3 was``, ``a, b were``.

    Of thousands the first few are named; ``whose`` comes before the verb.
    """
    more = len(names) - MOST_NAMED
    told = ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{told}{whose} {'was' if len(names) == 1 else 'were'}"


def guaranteed_prefix(successor: str = "") -> str:
    """Return the first part of the names of a guaranteed job's workers.

    ``successor``: its id, if it took the run over.
    """
    return f"live-{successor}" if successor else "live"


def standby_prefix(job_id: str) -> str:
    """Return the first part of the names of a standby job's workers."""
    return f"standby-{job_id}"


def worker_name(prefix: str, number: int | str) -> str:
    """Return the name of one worker of several with one first part."""
    return f"{prefix}-{number}"


def restarted_name(place: str, count: int) -> str:
    """Return the name of the process that is the ``count``-th in the place of a worker, 1 for the first.

    Names are those of processes: what is said of a dead one is not said of the one that takes its place.
    """
    return f"{place}.{count}" if count > 1 else place


def place_of(name: str) -> str:
    """Return the name of the first process that was in this one's place."""
    restarted = _RESTARTED.fullmatch(name)
    return restarted[1] if restarted else name


def earlier_in_place(name: str, others: Iterable[str]) -> list[str]:
    """Choose those of the others that are processes which were in this one's place before it."""
    place = place_of(name)
    if name == place:
        return []
    return [one for one in others if place_of(one) == place and natural_key(one) < natural_key(name)]


def of_job(job_id: str, names: Iterable[str]) -> list[str]:
    """Choose those of these workers that a standby job has started."""
    first = worker_name(standby_prefix(job_id), "")
    return [name for name in names if name.startswith(first)]


def local_standby_name(number: int) -> str:
    """Return the name of a standby that is a plain process; its job has the same."""
    return worker_name(standby_prefix("local"), number)


def is_guaranteed(name: str) -> bool:
    """Return whether a worker of this name is one of a guaranteed job's."""
    return name.startswith("live-")


def is_of_successor(name: str, job_id: str) -> bool:
    """Return whether a worker of this name is one of guaranteed job ``job_id``, which took the run over."""
    return name.startswith(worker_name(guaranteed_prefix(job_id), ""))


def task_number(name: str, job_id: str) -> int | None:
    """Return the number that srun gave this worker of guaranteed job ``job_id``.

    None: the name is not of that job's.
    """
    prefix, _, number = place_of(name).rpartition("-")
    of_job = prefix in (guaranteed_prefix(), guaranteed_prefix(job_id))
    return int(number) if of_job and number.isdecimal() else None


@lru_cache(maxsize=1 << 15)
def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which ``live-2`` comes before ``live-2.2``, and that before ``live-10``."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split("[-.]", name))
