"""Handing a guaranteed job to Slurm, after looking whether this cluster can ever run it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from liver_slurm.base.errors import BadInput, ClusterError
from liver_slurm.config.schema import ComponentSection, JobConfig, StandbySection
from liver_slurm.config.units import standby_units
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.batch import COORDINATOR_CPUS, header_problems, render_script
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.command import NotAnswering
from liver_slurm.scheduler.slurm.headroom import Unit, fitting_nodes, make_unit
from liver_slurm.scheduler.slurm.ownership import jobs_of_run
from liver_slurm.scheduler.slurm.parsing import parse_duration, parse_memory
from liver_slurm.scheduler.slurm.records import NodeInfo, PartitionInfo

log = logging.getLogger(__name__)


class SubmissionUnknown(ClusterError):
    """The job may be in the queue, so its run directory must stay."""


@dataclass(frozen=True)
class Submission:
    """A guaranteed job that was checked, once, and may be handed to Slurm or to whoever does that by hand."""

    config: JobConfig
    client: SlurmClient | None
    """None: no cluster was asked whether it can run the job, and none is to get it from here."""
    expedite: bool = False
    """The site lets a job that has lost a node come first when it is started again."""

    @classmethod
    def for_cluster(cls, config: JobConfig, client: SlurmClient) -> Submission:
        """Check the job against the cluster that it will be submitted to.

        Raises:
            BadInput: the cluster can never run the job; a line for each reason.
            ClusterError: Slurm did not answer.
        """
        checked = _without(check_submittable(config, client), config)
        allowed = client.config().get("SlurmctldParameters", "").split(",") if config.live.requeue else []
        return cls(checked, client, "enable_expedited_requeue" in allowed)

    @classmethod
    def by_hand(cls, config: JobConfig) -> Submission:
        """Check only whether a batch script can say what the job wants.

        Raises:
            BadInput: it cannot; a line for each reason.
        """
        return cls(_without(header_problems(config), config), None)

    def script(self, run_dir: RunDir) -> str:
        """Return the batch script of a run in ``run_dir``."""
        return render_script(self.config, run_dir, expedite=self.expedite)

    def write(self, run_dir: RunDir) -> None:
        """Write the batch script into the run directory."""
        run_dir.batch_script.write_text(self.script(run_dir))

    def submit(self, run_dir: RunDir, arguments: Sequence[str] = ()) -> str:
        """Write the batch script and submit it; returns the job's id.

        ``arguments`` reach the coordinator's command line.

        Raises:
            SubmissionUnknown: Slurm stopped answering before it could be seen whether it has taken the job.
            ClusterError: Slurm refused it or did not answer, and has no such job.
            KeyboardInterrupt: somebody wanted it no more; the job is ended if Slurm has taken it.
        """
        assert self.client is not None, "a job that is submitted by hand is not submitted from here"
        self.write(run_dir)
        try:
            return self.client.submit(run_dir.batch_script, arguments)
        except (NotAnswering, KeyboardInterrupt) as error:
            taken = _taken(self.client, run_dir, self.config.job.name, str(error) or "interrupted")
            if not taken:
                raise
            if isinstance(error, KeyboardInterrupt):
                self.client.cancel([taken])
                raise
            return taken


def _without(problems: Sequence[str], config: JobConfig) -> JobConfig:
    if problems:
        raise BadInput("\n".join(problems))
    return config


def _taken(client: SlurmClient, run_dir: RunDir, name: str, why: str) -> str:
    """Return the job that Slurm has taken though its answer was lost; empty: it has none."""
    try:
        found = [job.leader for job in jobs_of_run(client, run_dir, name) if not job.ends]
    except ClusterError as error:
        raise SubmissionUnknown(
            f"sbatch: {why}; whether Slurm has taken the job is unknown: once it answers, squeue --name={name} shows "
            f"it, and scancel ends it; its run directory is {run_dir.path}"
        ) from error
    return found[0] if found else ""


def check_submittable(config: JobConfig, client: SlurmClient) -> list[str]:
    """Return why this cluster can never run the job, a line for each reason with its key; empty if it can.

    Raises:
        ClusterError: Slurm did not answer.
    """
    check = _Check({partition.name: partition for partition in client.partitions()}, client.nodes, client.hostnames)
    live = config.live
    key = "live.partition" if live.coordinator_partition is None else "live.coordinator_partition"
    name = live.coordinator_partition or live.partition
    check.request(key, "live.time", name, live.time, "the coordinator", 1, Unit(1, COORDINATOR_CPUS))
    for number, component in enumerate(live.component):
        key = f"live.component[{number}]"
        partition_key = "live.partition" if component.partition is None else f"{key}.partition"
        name = component.partition or live.partition
        unit = check.unit(key, component, 1)
        check.request(partition_key, "live.time", name, live.time, key, component.nodes, unit)
    if config.standby.max_jobs > 0:
        units = standby_units(config.standby)
        for index, standby in enumerate(units):
            where = "standby" if not config.standby.unit else f"standby.unit[{index}]"
            unit = check.unit(where, standby, standby.nodes_per_job)
            for number, name in enumerate(standby.partitions):
                key = f"{where}.partitions[{number}]"
                check.request(key, "standby.time", name, standby.time, where, standby.nodes_per_job, unit)
    return list(dict.fromkeys([*header_problems(config), *check.problems]))


class _Check:
    """Collects problems; asks for a partition's nodes once."""

    def __init__(
        self,
        partitions: dict[str, PartitionInfo],
        nodes: Callable[[str], list[NodeInfo]],
        expand: Callable[[str], tuple[str, ...]],
    ) -> None:
        self.problems: list[str] = []
        self._partitions = partitions
        self._ask_nodes = nodes
        self._nodes: dict[str, list[NodeInfo]] = {}
        self._expand = expand

    def unit(self, key: str, wanted: ComponentSection | StandbySection, nodes: int) -> Unit:
        """Return what a component or a standby job asks of each of its nodes."""
        memory = 0
        if wanted.mem is not None:
            try:
                memory = parse_memory(wanted.mem)
            except ValueError as error:
                self.problems.append(f"{key}.mem: {error}")
        return make_unit(wanted, nodes, memory, self._expand)

    def request(
        self, partition_key: str, time_key: str, name: str | None, time: str, what: str, nodes: int, unit: Unit
    ) -> None:
        """Note why ``nodes`` such nodes for ``time`` can never be had.

        ``name`` may be a list, as sbatch takes it: one of the partitions is enough. Without a name where there is no
        default, or where the site's filter may choose another, Slurm has the last word.
        """

        def found(one: str | None) -> list[str]:
            before, self.problems = self.problems, []
            self._request(partition_key, time_key, one, time, what, nodes, unit)
            problems, self.problems = self.problems, before
            return problems

        if name is None:
            wrong = found(None)
            if wrong and any(one.is_up and not found(one.name) for one in self._partitions.values()):
                log.warning("%s; unless the site chooses another partition for it", "; ".join(wrong))
                wrong = []
        else:
            each = [found(one) for one in name.split(",")]
            wrong = [problem for problems in each for problem in problems] if all(each) else []
        self.problems += wrong

    def _request(
        self, partition_key: str, time_key: str, name: str | None, time: str, what: str, nodes: int, unit: Unit
    ) -> None:
        """Note why such nodes can never be had of one partition; None: of the cluster's default."""
        partition = self._partition(partition_key, name)
        if partition is None:
            return
        self._time(time_key, time, partition)
        if partition.max_nodes is not None and nodes > partition.max_nodes:
            self.problems.append(
                f"{what}: wants {nodes} nodes; partition {partition.name} gives a job {partition.max_nodes} at most"
            )
        fitting = fitting_nodes(self._nodes_of(partition.name), unit)
        if len(fitting) < nodes:
            self.problems.append(
                f"{what}: wants {nodes} node{'s' if nodes > 1 else ''} with {_describe(unit)}; partition "
                f"{partition.name} has {len(fitting)} of them among its {partition.total_nodes}"
            )

    def _partition(self, key: str, name: str | None) -> PartitionInfo | None:
        if name is None:
            for partition in self._partitions.values():
                if partition.is_default:
                    return partition
            return None  # a site's filter may choose one; if not, sbatch says so
        found = self._partitions.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._partitions, n=1)
            hint = f"the nearest is {near[0]}" if near else f"there are {self._known()}"
            self.problems.append(f'{key}: no partition "{name}" on this cluster; {hint}')
        elif not found.is_up:
            self.problems.append(f'{key}: partition "{name}" is not up')
            return None
        return found

    def _time(self, key: str, text: str, partition: PartitionInfo) -> None:
        try:
            wanted = parse_duration(text)
        except ValueError as error:
            self.problems.append(f"{key}: {error}")
            return
        if partition.max_time is not None and (wanted is None or wanted > partition.max_time):
            hours = partition.max_time / 3600
            self.problems.append(f'{key}: "{text}" is over the limit of partition {partition.name}, {hours:g} hours')

    def _nodes_of(self, partition: str) -> list[NodeInfo]:
        if partition not in self._nodes:
            self._nodes[partition] = self._ask_nodes(partition)
        return self._nodes[partition]

    def _known(self) -> str:
        return ", ".join(sorted(self._partitions))


def _describe(unit: Unit) -> str:
    parts = [f"{unit.cpus} CPU{'s' if unit.cpus > 1 else ''}"]
    if unit.gpus:
        parts.append(f"{unit.gpus} GPU{'s' if unit.gpus > 1 else ''}")
    if unit.memory:
        parts.append(f"{unit.memory} MiB")
    if unit.constraint:
        parts.append(f"features {unit.constraint}")
    if unit.exclude:
        parts.append(f"none of {', '.join(sorted(unit.exclude))}")
    return ", ".join(parts)
