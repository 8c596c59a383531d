"""All that ``liver-slurm top`` shows of a run at one moment, from status, history and newest steps. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from msgspec import UNSET, UnsetType

from liver_slurm.config.schema import JobConfig
from liver_slurm.observability.history import Happening, Preparing, RunHistory
from liver_slurm.observability.status import RunStatus, StandbyJobStatus, WorkerStatus
from liver_slurm.observability.summary import OVER
from liver_slurm.observability.throughput import pace
from liver_slurm.rundir.metrics import StepMetrics
from liver_slurm.rundir.worker_names import is_guaranteed, natural_key, task_number

SLOW = 10.0
"""A step counts as overdue after this many times the time that steps take."""


@dataclass(frozen=True)
class Contact:
    """What is known of the coordinator by asking it. Times are seconds since the epoch."""

    since: float
    """When it answered last; if it never has, when it was first asked."""
    answered: bool = False
    """It has answered at least once."""
    error: str = ""
    """Why it does not answer; empty: it does."""
    found: str = ""
    """What the scheduler, or this machine, says of the run's processes."""
    state: str = ""
    """State of the run, where none of its processes is left; empty: some are, or it cannot be told."""


@dataclass(frozen=True)
class NodeRow:
    """The workers of one node."""

    host: str
    """Empty: nobody knows."""
    partition: str
    """Empty: nobody knows, or there is none."""
    ranks: tuple[int, ...]
    """In the live world."""
    standbys: int
    """Workers in no world."""
    leaving: bool
    """One of them has a notice."""


@dataclass(frozen=True)
class NoticeRow:
    """Workers of one node that will go away for one reason at one time."""

    host: str
    kind: str
    reason: str
    deadline: float | None
    """Seconds since the epoch; None: nobody will kill them."""
    workers: tuple[str, ...]
    ranks: tuple[int, ...]
    """Of those in the live world."""


@dataclass(frozen=True)
class TopView:
    """One moment of a run."""

    time: float
    """Seconds since the epoch."""
    created: float
    """When the run directory was made."""
    ended: float | None
    """When the run ended; None: it goes on, or never said so."""
    status: RunStatus
    contact: Contact
    preparing: Preparing | None
    nodes: tuple[NodeRow, ...]
    notices: tuple[NoticeRow, ...]
    happenings: tuple[Happening, ...]
    """Newest first."""
    losses: tuple[float, ...]
    """Of the newest steps, oldest first; NaN: not finite."""
    steps_per_s: float | None
    """Of the live world's last steps; None: not known."""
    remaining_s: float | None
    """Until the last step, if all goes on as now."""
    overdue_s: float | None
    """Since the last step ended, where that is much longer than steps take; else None."""
    orphan_s: float | None
    """Until workers that hear nothing of a coordinator end; None: they hear of it."""

    @property
    def over(self) -> bool:
        """The run has ended."""
        return self.status.state in OVER


def top_view(
    now: float,
    created: float,
    config: JobConfig,
    status: RunStatus,
    history: RunHistory,
    steps: Sequence[StepMetrics],
    contact: Contact,
) -> TopView:
    """Put one moment together.

    Args:
        now: seconds since the epoch.
        created: when the run directory was made.
        steps: the newest, in order.
    """
    over = status.state in OVER
    speed = pace(steps, status.step, status.steps)
    age = now - steps[-1].end if steps and status.state == "training" else 0.0
    late = speed.step_seconds is not None and age > max(5.0, SLOW * speed.step_seconds)
    away = bool(contact.error) and not over and status.state == "training"
    return TopView(
        time=now,
        created=created,
        ended=history.ended,
        status=status,
        contact=contact,
        preparing=None if over else history.preparing,
        nodes=() if over else _nodes(config, status, history),
        notices=() if over else _notices(status, history),
        happenings=tuple(reversed(history.happenings)),
        losses=tuple(step.loss for step in steps),
        steps_per_s=1.0 / speed.step_seconds if speed.step_seconds else None,
        remaining_s=None if over else speed.remaining_s,
        overdue_s=age if late else None,
        orphan_s=max(0.0, contact.since + config.job.orphan_timeout - now) if away else None,
    )


def _nodes(config: JobConfig, status: RunStatus, history: RunHistory) -> tuple[NodeRow, ...]:
    """Gather workers by partition and node, those with a notice first."""
    jobs = status.standby_jobs if status.standby_jobs is not UNSET else []
    placed = [((partition_of(worker, status, jobs, config), _known(worker.host)), worker) for worker in _all(status)]
    placed.sort(key=lambda one: (one[0][0], _by_number(one[0][1])))
    rows = []
    for (partition, host), group in groupby(placed, key=lambda one: one[0]):
        workers = [worker for _, worker in group]
        ranks = tuple(sorted(worker.rank for worker in workers if worker.rank is not UNSET))
        leaving = any(worker.worker in history.notices or worker.notice not in (None, UNSET) for worker in workers)
        rows.append(NodeRow(host, partition, ranks, len(workers) - len(ranks), leaving))
    return tuple(sorted(rows, key=lambda row: not row.leaving))


def _by_number(host: str) -> list[tuple[int, str]]:
    """Sort key under which ``n9`` comes before ``n10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", host)]


def _all(status: RunStatus) -> list[WorkerStatus]:
    return [*status.workers, *status.standbys]


def _known(text: str | UnsetType | None) -> str:
    return text if isinstance(text, str) else ""


def partition_of(worker: WorkerStatus, status: RunStatus, jobs: Iterable[StandbyJobStatus], config: JobConfig) -> str:
    """Return the partition of a worker; empty: it is in none, or nobody knows."""
    if not _known(status.job_id):
        return ""
    if is_guaranteed(worker.worker):
        return _guaranteed_partition(worker, config)
    found = next((job.partition for job in jobs if job.job_id == worker.job_id), UNSET)
    only = config.standby.partitions[0] if len(config.standby.partitions) == 1 and not config.standby.unit else ""
    return _known(found) or only


def _guaranteed_partition(worker: WorkerStatus, config: JobConfig) -> str:
    """Return the partition of the component that has this task; tasks are counted through all components."""
    number = task_number(worker.worker, _known(worker.job_id))
    parts = [one.partition or config.live.partition or "" for one in config.live.component]
    if len(set(parts)) == 1:
        return parts[0]
    for component, part in zip(config.live.component, parts, strict=True):
        workers = component.nodes * component.tasks_per_node
        if number is not None and number < workers:
            return part
        number = number - workers if number is not None else None
    return ""


def _notices(status: RunStatus, history: RunHistory) -> tuple[NoticeRow, ...]:
    """Gather notices by node, kind and deadline; the most urgent first."""
    ranks = {worker.worker: worker.rank for worker in status.workers if worker.rank is not UNSET}
    found = sorted(history.notices.values(), key=lambda one: (_due(one.deadline), one.host, one.kind))
    rows = []
    for (deadline, host, kind), group in groupby(found, key=lambda one: (one.deadline, one.host, one.kind)):
        notices = list(group)
        names = tuple(sorted((one.worker for one in notices), key=natural_key))
        of_world = tuple(sorted(ranks[name] for name in names if name in ranks))
        rows.append(NoticeRow(host, kind, notices[0].reason, deadline, names, of_world))
    return tuple(rows)


def _due(deadline: float | None) -> float:
    return math.inf if deadline is None else deadline
