"""Standby jobs on Slurm: one ordinary job per reclaimable unit, so that Slurm takes them back one at a time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from liver_slurm.config.rundir import RunDir
from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.supply import Supply
from liver_slurm.errors import ClusterError
from liver_slurm.slurm.capacity import Unit, idle_units, make_unit
from liver_slurm.slurm.client import SlurmClient
from liver_slurm.slurm.command import first_line
from liver_slurm.slurm.notices import Terms, make_terms, preempts_by_qos, standby_job
from liver_slurm.slurm.records import WIDTH, JobInfo, NodeInfo, ReservationInfo, parse_memory
from liver_slurm.worker.entry import standby_main

RESERVATIONS_EVERY = 30.0
"""Seconds between looks at the reservations, which are made long before they begin."""


class SlurmStandbySource:
    """:class:`liver_slurm.coordinator.supply.StandbySource` on Slurm, through submitit.

    A job's state never comes from submitit (its watcher asks sacct, and may be ten minutes behind) but from one query
    of our own for all jobs. They are found by name and comment, so a coordinator that was started again finds those of
    its predecessor.
    """

    def __init__(
        self,
        config: JobConfig,
        run_dir: RunDir,
        client: SlurmClient,
        function: Callable[[str], Any] = standby_main,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``function``: what each task runs, given the run directory's path; it must be importable on the node."""
        self._config = config
        self._run_dir = run_dir
        self._client = client
        self._function = function
        self._clock = clock
        self._name = standby_job_name(run_dir)
        self._unit = _unit(config, client)
        self._idle: dict[str, int] = {}
        self._last = Supply(time=clock(), idle_units=0, jobs=())
        self._nodes: dict[str, NodeInfo] = {}
        self._reservations: list[ReservationInfo] = []
        self._reservations_at = -math.inf
        self._terms: Terms | None = None

    def observe(self) -> Supply:
        """See :class:`StandbySource`: one query for the jobs, and one a partition for its nodes.

        Reservations are asked for every :data:`RESERVATIONS_EVERY` seconds, the cluster's settings when a job is new.
        """
        now = self._clock()
        try:
            known = self._own_jobs()
            self._idle = self._idle_by_partition()
            if now >= self._reservations_at + RESERVATIONS_EVERY:
                self._reservations, self._reservations_at = self._client.reservations(), now
            new = {job.job_id for job in known if not job.is_over} - {job.job_id for job in self._last.jobs}
            if self._terms is None or new:
                self._terms = self._ask_terms()
        except ClusterError as error:
            return replace(self._last, blind=str(error))
        seen = (standby_job(job, self._nodes, self._reservations, self._terms, now) for job in known)
        jobs = [job for job in seen if job is not None]
        # A pending job of ours is about to take what is idle now.
        pending = sum(job.state == "pending" for job in jobs)
        idle = max(0, sum(self._idle.values()) - pending)
        self._last = Supply(time=self._clock(), idle_units=idle, jobs=tuple(jobs))
        return self._last

    def launch(self, count: int) -> list[str]:
        """See :class:`StandbySource`: each job goes to the best partition that has room for it.

        Those that were submitted before one is refused stay; :meth:`observe` shows them.
        """
        return [self._submit(self._choose_partition()) for _ in range(count)]

    def release(self, job_id: str) -> None:
        """See :class:`StandbySource`."""
        self._client.cancel([job_id])

    def close(self) -> None:
        """See :class:`StandbySource`: also those that an earlier coordinator of the run started."""
        self._client.cancel([job.job_id for job in self._own_jobs() if not job.is_over])

    def _ask_terms(self) -> Terms:
        settings = self._client.config()
        return make_terms(
            self._config.standby,
            self._config.job.prepare_timeout,
            settings,
            self._client.partitions(),
            self._client.qos_grace() if preempts_by_qos(settings) else {},
        )

    def _own_jobs(self) -> list[JobInfo]:
        # Slurm's answer is as wide as we asked for; two runs of one name differ in the comment.
        mark = str(self._run_dir.path)[:WIDTH]
        return [job for job in self._client.jobs(name=self._name) if job.comment == mark]

    def _idle_by_partition(self) -> dict[str, int]:
        """Idle units of each partition, best first; a node of several partitions counts for the first."""
        seen: dict[str, NodeInfo] = {}
        idle = {}
        for partition in self._config.standby.partitions:
            nodes = [node for node in self._client.nodes(partition) if node.name not in seen]
            seen.update({node.name: node for node in nodes})
            idle[partition] = idle_units(nodes, self._unit)
        self._nodes = seen
        return idle

    def _choose_partition(self) -> str:
        for partition, units in self._idle.items():
            if units > 0:
                self._idle[partition] = units - 1
                return partition
        # None has room: the job waits for the best one. Were it in line for several, one of a higher tier could
        # preempt our own standbys for it.
        return self._config.standby.partitions[0]

    def _submit(self, partition: str) -> str:
        # Late, because submitit is slow to import and only a coordinator on Slurm needs it.
        from liver_slurm.slurm.executor import make_executor

        path = str(self._run_dir.path)
        try:
            executor = make_executor(self._config, self._run_dir.standby, self._name, path, partition)
            return str(executor.submit(self._function, path).job_id)
        except RuntimeError as error:  # submitit's word for all that Slurm refuses
            raise ClusterError(f"a standby job was refused: {first_line(str(error))}") from error


def standby_job_name(run_dir: RunDir) -> str:
    """Name of all standby jobs of a run; squeue takes a list of names, so it has no comma in it."""
    return re.sub(r"[^\w.+-]", "_", run_dir.path.name) + "-standby"


def _unit(config: JobConfig, client: SlurmClient) -> Unit:
    standby = config.standby
    memory = parse_memory(standby.mem) if standby.mem is not None else 0
    return make_unit(standby, standby.nodes_per_job, memory, client.hostnames)
