"""Asking Slurm and telling it: an interface, and its implementation on Slurm's own commands."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from liver_slurm.base.errors import ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.scheduler.slurm.command import (
    HEADER_OF,
    NotAnswering,
    outside_environment,
    retried,
    run_once,
)
from liver_slurm.scheduler.slurm.parsing import (
    JOB_FIELDS,
    NODE_FIELDS,
    cut_node_lists,
    format_option,
    parse_config,
    parse_jobs,
    parse_node_list,
    parse_nodes,
    parse_partitions,
    parse_qos_grace,
    parse_reservations,
    parse_steps,
    with_node_lists,
)
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo, StepInfo

Version = tuple[int, int, int]
Receiver = Literal["steps", "batch", "all"]

_RECEIVER_OPTIONS: dict[Receiver, list[str]] = {"steps": [], "batch": ["--batch"], "all": ["--full"]}


class SlurmClient(Protocol):
    """What the rest of the product asks Slurm; every method raises ClusterError with one clear line."""

    def version(self) -> Version:
        """Return Slurm's version, e.g. (22, 5, 8)."""

    def jobs(self, ids: Sequence[str] = (), names: Sequence[str] = (), *, own: bool = False) -> list[JobInfo]:
        """Jobs by id or by name, all components of each, in one query; ended ones while Slurm still knows them.

        An id that Slurm does not know is not in the answer. Names are looked for among the user's own jobs, and with
        ``own`` ids are, too.
        """

    def steps(self, job_id: str) -> list[StepInfo]:
        """Return the steps of a job, also the batch script; a leader's id means all components.

        None once it is over.
        """

    def partitions(self) -> list[PartitionInfo]:
        """Return all partitions."""

    def nodes(self, partition: str | None = None) -> list[NodeInfo]:
        """Return the nodes of one partition, or all, as they are now; none if there is no such partition."""

    def reservations(self) -> list[ReservationInfo]:
        """Return all reservations that are not over."""

    def config(self) -> dict[str, str]:
        """Return Slurm's settings, e.g. KillWait → ``30 sec``."""

    def qos_grace(self) -> dict[str, float]:
        """GraceTime of each QOS, seconds; asks slurmdbd."""

    def hostnames(self, expression: str) -> tuple[str, ...]:
        """Return the host names of ``n[1-3],m7``."""

    def submit(self, script: Path, arguments: Sequence[str] = ()) -> str:
        """Submit a batch script; returns the job's id.

        ``arguments`` are the script's own. Options of sbatch stand in its header.
        """

    def cancel(self, ids: Sequence[str]) -> None:
        """End jobs; those that are over already are not an error. A component's own number ends it alone."""

    def signal(self, job_id: str, name: str, to: Receiver = "steps") -> None:
        """Send a signal, e.g. ``USR1``, to a running job's steps, its batch shell, or both with its children.

        ``all`` reaches srun too, which dies of most signals.
        """

    def update_job(self, job_id: str, changes: Mapping[str, str]) -> None:
        """Change a job, by ``scontrol update``'s keys, e.g. ``{"TimeLimit": "10"}``."""


def header_options(script: Path) -> frozenset[str]:
    """Return the names of the options in a batch script's header."""
    return frozenset(re.findall(r"(?m)^#SBATCH\s+--([\w-]+)", script.read_text(errors="replace")))


class CommandClient:
    """:class:`SlurmClient` on sinfo, squeue, scontrol, sbatch and scancel."""

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        budget: QueryBudget | None = None,
    ) -> None:
        """Args:
        environment: of the commands; default: ours, as it would be outside of a job.
        timeout: seconds that one command may take.
        budget: counts what is asked.
        """
        self._environment = dict(outside_environment(environment))
        # One format for all times in all versions and time zones.
        self._environment["SLURM_TIME_FORMAT"] = "%s"
        self._timeout = timeout
        self._budget = budget
        self._hostnames: dict[str, tuple[str, ...]] = {}

    def version(self) -> Version:
        output = self._ask(["sinfo", "--version"], queries=0)
        match = re.search(r"(\d+)\.(\d+)\.(\d+)", output)
        if match is None:
            raise ClusterError(f"sinfo --version printed no version: {output.strip()!r}")
        return int(match[1]), int(match[2]), int(match[3])

    def jobs(self, ids: Sequence[str] = (), names: Sequence[str] = (), *, own: bool = False) -> list[JobInfo]:
        argv = ["squeue", "--local", "--noheader", "--states=all", "-O", format_option(JOB_FIELDS)]
        if ids:
            argv.append("--jobs=" + ",".join(ids))
        if names:
            argv.append(f"--name={','.join(names)}")
        if names or own:
            argv.append(f"--user={os.getuid()}")
        try:
            output = self._ask(argv, queries=2)  # jobs, and partitions
        except ClusterError as error:
            # Said when the only id that was asked for is unknown; among others, unknown ids are left out silently.
            if "invalid job id" in str(error).lower():
                return []
            raise
        return parse_jobs(self._uncut(output), self.hostnames)

    def steps(self, job_id: str) -> list[StepInfo]:
        try:
            # Of all jobs, in one query: a leader's components have steps under their own numbers.
            numbers = {job.number for job in self.jobs([job_id])}
            output = self._ask(["scontrol", "-o", "show", "step"], queries=2)  # steps, and jobs
        except ClusterError as error:
            if "invalid job id" in str(error).lower():
                return []
            raise
        return [step for step in parse_steps(output, self.hostnames) if int(step.step_id.split(".")[0]) in numbers]

    def partitions(self) -> list[PartitionInfo]:
        return parse_partitions(self._ask(["scontrol", "-o", "show", "partition"]))

    def nodes(self, partition: str | None = None) -> list[NodeInfo]:
        argv = ["sinfo", "--local", "--noheader", "-N", "-O", format_option(NODE_FIELDS)]
        if partition is not None:
            argv.append(f"--partition={partition}")
        return parse_nodes(self._ask(argv, queries=2))  # nodes, and partitions

    def reservations(self) -> list[ReservationInfo]:
        return parse_reservations(self._ask(["scontrol", "-o", "show", "reservation"]), self.hostnames)

    def config(self) -> dict[str, str]:
        return parse_config(self._ask(["scontrol", "show", "config"]))

    def qos_grace(self) -> dict[str, float]:
        return parse_qos_grace(self._ask(["sacctmgr", "-nP", "show", "qos", "format=Name,GraceTime"], queries=0))

    def hostnames(self, expression: str) -> tuple[str, ...]:
        if "[" not in expression:
            return tuple(name for name in expression.split(",") if name)
        if expression not in self._hostnames:
            self._hostnames[expression] = tuple(
                self._ask(["scontrol", "show", "hostnames", expression], queries=0).split()
            )
        return self._hostnames[expression]

    def submit(self, script: Path, arguments: Sequence[str] = ()) -> str:
        """Submit a batch script, once; returns the job's id.

        It is not tried again: an answer that was lost on its way may belong to a job that was submitted.
        """
        said = header_options(script)
        environment = {name: value for name, value in self._environment.items() if HEADER_OF.get(name) not in said}
        argv = ["sbatch", "--parsable", str(script), *arguments]
        output = run_once(argv, self._timeout, environment)
        # A site's filter or banner may say something first; ID;CLUSTER is what a federation answers.
        found = re.findall(r"(?m)^(\d+)(?:;\S*)?\s*$", output)
        if not found:
            raise NotAnswering(f"sbatch printed no job id: {output.strip()!r}")
        return str(found[-1])

    def cancel(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        try:
            self._ask(["scancel", *ids], queries=0)
        except NotAnswering:
            raise
        except ClusterError:
            # scancel fails for a job that has ended meanwhile, in words that differ by version: look instead.
            left = [job.job_id for job in self.jobs(ids) if not job.ends]
            if left:
                raise

    def signal(self, job_id: str, name: str, to: Receiver = "steps") -> None:
        self._ask(["scancel", f"--signal={name}", *_RECEIVER_OPTIONS[to], job_id], queries=0)

    def update_job(self, job_id: str, changes: Mapping[str, str]) -> None:
        argv = ["scontrol", "update", f"JobId={job_id}", *(f"{key}={value}" for key, value in changes.items())]
        self._ask(argv, queries=0)

    def _uncut(self, output: str) -> str:
        """Return squeue's answer with lists of nodes that it has cut off taken from the jobs' own records.

        A list that fills its field may have been cut; what is left of one names other nodes, or none.
        """
        if not (cut := cut_node_lists(output)):
            return output
        shown = {}
        for number in dict.fromkeys(number for number, _ in cut):
            shown[number] = parse_node_list(self._ask(["scontrol", "-o", "show", "job", number]), number)
        return with_node_lists(output, shown)

    def _ask(self, argv: Sequence[str], queries: int = 1) -> str:
        """Run a command of Slurm's.

        ``queries``: what slurmctld counts for the command; 0 for orders and for what it does not see.
        """

        def attempt() -> str:
            if self._budget is not None:
                self._budget.spend(queries)
            return run_once(argv, self._timeout, self._environment)

        return retried(attempt)
