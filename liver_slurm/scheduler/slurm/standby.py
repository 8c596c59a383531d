"""Standby jobs on Slurm: one ordinary job per reclaimable unit, so that Slurm takes them back one at a time."""

from __future__ import annotations

import logging
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from liver_slurm.base.errors import ClusterError
from liver_slurm.base.frozen import replace
from liver_slurm.config import sbatch
from liver_slurm.config.schema import JobConfig, StandbySection
from liver_slurm.config.units import standby_units, warning_seconds
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, LaunchStopped, StandbyJob
from liver_slurm.scheduler.slurm.batch import gpu_request
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.headroom import Unit, idle_units, make_unit
from liver_slurm.scheduler.slurm.notices import Terms, make_terms, preempts_by_qos, standby_job
from liver_slurm.scheduler.slurm.parsing import WIDTH, parse_duration, parse_memory
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, ReservationInfo
from liver_slurm.scheduler.slurm.submitit_launcher import LaunchRequest, launch, task_path

log = logging.getLogger(__name__)

RESERVATIONS_EVERY = 15.0
"""Seconds between looks at the reservations, which are made long before they begin."""
SETTINGS_EVERY = 300.0
"""Seconds between looks at the cluster's settings, which change with its configuration; only for jobs that begin."""
UNSEEN = 300.0
"""Seconds for which a job that sbatch has named counts as pending although Slurm does not show it. After that it must
have come and gone between two looks, and Slurm has forgotten it."""
AT_ONCE = 8
"""Orders that Slurm is given side by side. It looks at its queue after each, and once after all that have come by then:
one after another, a hundred of them keep it busy for seconds in which no job starts."""
UNIT_MARK = " unit="
"""In a standby job's comment, between the run directory and the number of its unit; absent for the first."""
SCRIPT_MARK = "# liver_slurm.worker --role standby: a site's job_submit filter knows standbys by this line."
"""In a standby's batch script, whose command is submitit's own; see ``plugins/slurm/job_submit.lua``."""


class SlurmStandbys:
    """:class:`liver_slurm.scheduler.ports.StandbyProvider` on Slurm; submitit launches the jobs.

    A job's state never comes from submitit (its watcher asks sacct, and may be ten minutes behind) but from one query
    of our own. Ours are the jobs whose ids sbatch has answered, also to an earlier coordinator; and those of our user
    that carry the run's name and comment, for one may have died before it could write an id down. A site may write
    other names and comments, so those that are not found by them are asked for by id.
    """

    def __init__(
        self,
        config: JobConfig,
        run_dir: RunDir,
        client: SlurmClient,
        task: Callable[[str], Any],
        clock: Callable[[], float] = time.time,
        launched: Mapping[str, int] | None = None,
        launcher: Callable[[LaunchRequest], list[str]] | None = None,
    ) -> None:
        """
        Args:
            config: the run's.
            run_dir: the run's.
            client: asks Slurm.
            task: what each task runs, given the run directory's path; it must be importable on the node.
            clock: seconds since the epoch.
            launched: unit of each job that earlier coordinators have launched, by id; some may be over.
            launcher: submits jobs and returns their ids; default: submitit's.
        """
        self._config = config
        self._run_dir = run_dir
        self._client = client
        self._task, self._launcher = task, launcher
        self._clock = clock
        self._name = standby_job_name(run_dir)
        self._units = tuple(_unit(section, client) for section in standby_units(config.standby))
        self._last = CapacitySnapshot(time=clock(), jobs=())
        self._nodes: dict[str, NodeInfo] = {}
        self._reservations: list[ReservationInfo] = []
        self._reservations_at = -math.inf
        self._terms: Terms | None = None
        self._terms_at = self._settings_at = -math.inf
        self._settings: dict[str, str] = {}
        self._running: frozenset[str] = frozenset()
        self._begun = False
        """A job has begun to run since the partitions were asked for."""
        self._launched = dict(launched or {})
        """Unit of each job that sbatch has named and that was not seen to be over."""
        self._unseen: dict[str, tuple[float, str]] = {}
        """When those were submitted that Slurm has not shown yet, and in which partition."""

    def observe(self) -> CapacitySnapshot:
        """Take a capacity snapshot: one query for the jobs, and one a partition for its nodes.

        One more for reservations, every :data:`RESERVATIONS_EVERY` seconds, or for the terms on which a job runs that
        has begun since; where both are due, what was asked for longer ago comes first, and the other one at the next
        look. Where many come and go a job begins at each look, and all that could be asked then would be half of it.
        """
        now = self._clock()
        try:
            known = self._own_jobs()
            room = self._room()
            running = frozenset(job.job_id for job in known if job.nodes and not job.is_over)
            self._begun = self._begun or bool(running - self._running)
            self._running = running
            self._ask_more(now)
            assert self._terms is not None
        except ClusterError as error:
            return replace(self._last, blind=str(error))
        jobs = [
            replace(seen, partition=job.partition, unit=self._launched.get(job.leader, _unit_of(job.comment)))
            for job in known
            if (seen := standby_job(job, self._nodes, self._reservations, self._terms, now)) is not None
        ]
        jobs += [
            StandbyJob(job_id, "pending", partition=partition, unit=self._launched[job_id])
            for job_id, (_, partition) in self._unseen.items()
        ]
        over: dict[str, Literal["taken", "ended"]] = {
            job.leader: "taken" if job.was_taken else "ended" for job in known if job.is_over
        }
        self._last = CapacitySnapshot(self._clock(), tuple(jobs), room, over=over)
        return self._last

    def launch(self, count: int, unit: int = 0, partition: str = "", after: float = 0.0) -> list[str]:
        """Submit standby jobs, which stay in the queue for ``after`` seconds; without a partition in the unit's best.

        Raises:
            LaunchStopped: one was refused; those that were submitted before it stay.
        """
        section = standby_units(self._config.standby)[unit]
        place = partition or section.partitions[0]
        request = LaunchRequest(
            count=count,
            folder=str(self._run_dir.standby),
            python=shlex.quote(self._config.live.python or sys.executable),
            parameters=submitit_parameters(
                self._config, section, self._name, _comment(self._run_dir, unit), place, after
            ),
            task=task_path(self._task),
            argument=str(self._run_dir.path),
        )
        try:
            job_ids = (self._launcher or launch)(request)
        except LaunchStopped as stopped:
            self._submitted(stopped.job_ids, unit, place)
            raise
        self._submitted(job_ids, unit, place)
        return job_ids

    def _submitted(self, job_ids: Sequence[str], unit: int, partition: str) -> None:
        for job_id in job_ids:
            self._launched[job_id] = unit
            self._unseen[job_id] = (self._clock(), partition)

    def release(self, job_id: str) -> None:
        self._client.cancel([job_id])

    def defer(self, job_ids: Sequence[str], seconds: float) -> None:
        """Set when jobs may start at the earliest.

        Raises:
            ClusterError: Slurm has refused it for one, because it has started, or more; the others were told.
        """
        start = {"StartTime": f"now+{math.ceil(seconds)}"}
        # To Slurm a list is as many orders as it names jobs.
        lists = [",".join(job_ids[first::AT_ONCE]) for first in range(min(AT_ONCE, len(job_ids)))]
        with ThreadPoolExecutor(AT_ONCE, "deferral") as threads:
            told = [threads.submit(self._client.update_job, one, start) for one in lists]
        for one in told:
            one.result()

    def close(self) -> None:
        """End all standby jobs, those included that an earlier coordinator started, or that Slurm does not show yet."""
        shown = [job.job_id for job in self._own_jobs() if not job.is_over]
        self._client.cancel([*shown, *self._unseen])

    def _ask_more(self, now: float) -> None:
        """Ask one question more, if one is due; the first time all of them."""
        first, reserves = self._terms is None, now >= self._reservations_at + RESERVATIONS_EVERY
        if first or (self._begun and not (reserves and self._reservations_at < self._terms_at)):
            reserves = first
            if now >= self._settings_at + SETTINGS_EVERY:
                self._settings, self._settings_at = self._client.config(), now
            if first or self._settings_at < now:
                self._terms, self._terms_at, self._begun = self._ask_terms(), now, False
        if reserves:
            self._reservations, self._reservations_at = self._client.reservations(), now

    def _ask_terms(self) -> Terms:
        return make_terms(
            self._config.standby,
            self._config.job.prepare_timeout,
            self._settings,
            self._client.partitions(),
            self._client.qos_grace() if preempts_by_qos(self._settings) else {},
        )

    def _own_jobs(self) -> list[JobInfo]:
        marked = self._client.jobs(names=(self._name,))
        found = [job for job in marked if job.leader in self._launched or carries_mark(job, self._run_dir)]
        there = {job.leader for job in found}
        if missing := [job_id for job_id in self._launched if job_id not in there]:
            found += self._client.jobs(missing, own=True)  # another's may have the number, if Slurm counts anew
        self._note({job.leader for job in found}, {job.leader for job in found if job.is_over})
        return found

    def _note(self, there: set[str], over: set[str]) -> None:
        """Forget jobs that are over, or that Slurm has shown and no longer knows; one it never showed is waited for."""
        forget_at = self._clock() - UNSEEN
        for job_id in list(self._launched):
            submitted = self._unseen.get(job_id)
            if job_id in there:
                self._unseen.pop(job_id, None)
            elif submitted is None or submitted[0] <= forget_at:
                over.add(job_id)
                if submitted is not None:
                    log.warning("Slurm has not shown standby job %s within %g s: it is given up", job_id, UNSEEN)
        for job_id in over:
            self._launched.pop(job_id, None)
            self._unseen.pop(job_id, None)

    def _room(self) -> tuple[Headroom, ...]:
        """Room for each unit in each of its partitions, best first; a node of several counts for the first."""
        sections = standby_units(self._config.standby)
        names = dict.fromkeys(name for section in sections for name in section.partitions)
        nodes = {name: self._client.nodes(name) for name in names}
        self._nodes = {node.name: node for found in nodes.values() for node in found}
        room = []
        for number, section in enumerate(sections):
            seen: set[str] = set()
            for name in section.partitions:
                fresh = [node for node in nodes[name] if node.name not in seen]
                seen.update(node.name for node in fresh)
                room.append(Headroom(number, name, idle_units(fresh, self._units[number])))
        return tuple(room)


def submitit_parameters(
    config: JobConfig, standby: StandbySection, job_name: str, comment: str, partition: str, after: float = 0.0
) -> dict[str, Any]:
    """Return what ``submitit.SlurmExecutor`` is told of a job of the size ``standby`` in ``partition``.

    ``after``: seconds for which it stays in the queue.
    """
    return {
        "job_name": job_name,
        "comment": comment,
        "partition": partition,
        "time": max(1, math.ceil((parse_duration(standby.time) or 0) / 60)),
        "nodes": standby.nodes_per_job,
        "ntasks_per_node": standby.tasks_per_node,
        "cpus_per_task": standby.cpus_per_task,
        "gres": gpu_request(standby),
        "constraint": standby.constraint,
        "exclude": standby.exclude,
        "account": standby.account or config.live.account,
        "qos": standby.qos,
        "wckey": None,
        "setup": [
            SCRIPT_MARK,
            *config.live.setup,
            f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{standby.cpus_per_task}}}"',
        ],
        # From Slurm 22.05 on srun does not take the CPUs of a task from the job. One worker that leaves or dies takes
        # no other of its unit with it; under a PMI, srun of 26.05 signals the others.
        "srun_args": [
            f"--cpus-per-task={standby.cpus_per_task}",
            "--mpi=none",
            "--no-kill",
            "--kill-on-bad-exit=0",
            "--wait=0",
        ],
        "additional_parameters": {
            **_header_lines(standby),
            **({"begin": f"now+{math.ceil(after)}"} if after > 0.0 else {}),
        },
    }


def _header_lines(standby: StandbySection) -> dict[str, str | bool]:
    """Header lines that submitit has no parameter for, or has one in other units than Slurm's."""
    # No --no-kill: with it, workers on a node that is set DOWN are killed without a word; without it all of the job's
    # get SIGTERM and KillWait, in which the world goes on without them. A standby that came back under its old id
    # would be a stranger to its run: no requeue.
    lines: dict[str, str | bool] = {
        "time": standby.time,
        "export": "ALL",
        "no-requeue": True,
        "signal": standby.signal or f"USR2@{int(warning_seconds(standby))}",
        **{name: value if value is not None else True for name, value in sbatch.options(standby.sbatch)},
    }
    if standby.mem is not None:
        lines["mem"] = standby.mem
    return lines


def standby_job_name(run_dir: RunDir) -> str:
    """Name of all standby jobs of a run; squeue takes a list of names, so it has no comma in it."""
    return re.sub(r"[^\w.+-]", "_", run_dir.path.name) + "-standby"


def _comment(run_dir: RunDir, unit: int) -> str:
    """Return what a standby job's comment says: whose it is, and of which size."""
    mark = f"{UNIT_MARK}{unit}" if unit else ""
    return str(run_dir.path)[: WIDTH - len(UNIT_MARK) - 4] + mark


def carries_mark(job: JobInfo, run_dir: RunDir) -> bool:
    """Return whether a job's comment says that it is one of the run's; two runs of one name differ in it."""
    mark = job.comment.partition(UNIT_MARK)[0]
    path = str(run_dir.path)
    # As much of a long path as fits beside the unit; Slurm's answer is as wide as we asked for.
    return mark in (path, path[:WIDTH], path[: WIDTH - len(UNIT_MARK) - 4])


def _unit_of(comment: str) -> int:
    number = comment.partition(UNIT_MARK)[2]
    return int(number) if number.isdecimal() else 0


def _unit(section: StandbySection, client: SlurmClient) -> Unit:
    memory = parse_memory(section.mem) if section.mem is not None else 0
    return make_unit(section, section.nodes_per_job, memory, client.hostnames)
