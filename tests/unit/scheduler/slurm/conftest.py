"""A Slurm that exists in memory only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.scheduler.slurm.client import Receiver
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo, StepInfo


@dataclass
class FakeSlurm:
    """Implements SlurmClient; tests fill in what it knows and read what it was told."""

    infos: list[JobInfo] = field(default_factory=list)
    known: dict[str, PartitionInfo] = field(default_factory=dict)
    members: dict[str, list[NodeInfo]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    signalled: list[tuple[str, str, str]] = field(default_factory=list)
    updated: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    submitted: list[tuple[Path, tuple[str, ...]]] = field(default_factory=list)
    reserved: list[ReservationInfo] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=lambda: {"KillWait": "30 sec"})
    graces: dict[str, float] = field(default_factory=dict)
    away: bool = False
    of_others: set[int] = field(default_factory=set)
    """Numbers of another user's jobs."""

    def version(self) -> tuple[int, int, int]:
        return (22, 5, 8)

    def jobs(self, ids: Sequence[str] = (), names: Sequence[str] = (), *, own: bool = False) -> list[JobInfo]:
        if self.away:
            raise ClusterError("squeue: Unable to contact slurm controller")
        own = own or bool(names)
        known = [job for job in self.infos if not (own and job.number in self.of_others)]
        return [job for job in known if (not ids or job.leader in ids) and (not names or job.name in names)]

    def partitions(self) -> list[PartitionInfo]:
        return list(self.known.values())

    def steps(self, job_id: str) -> list[StepInfo]:
        return []

    def nodes(self, partition: str | None = None) -> list[NodeInfo]:
        if partition is None:
            return list({node.name: node for nodes in self.members.values() for node in nodes}.values())
        return self.members.get(partition, [])

    def reservations(self) -> list[ReservationInfo]:
        return list(self.reserved)

    def config(self) -> dict[str, str]:
        return dict(self.settings)

    def qos_grace(self) -> dict[str, float]:
        return dict(self.graces)

    def hostnames(self, expression: str) -> tuple[str, ...]:
        return tuple(expression.split(","))

    def submit(self, script: Path, arguments: Sequence[str] = ()) -> str:
        self.submitted.append((script, tuple(arguments)))
        return "77"

    def cancel(self, ids: Sequence[str]) -> None:
        self.cancelled += ids

    def signal(self, job_id: str, name: str, to: Receiver = "steps") -> None:
        self.signalled.append((job_id, name, to))

    def update_job(self, job_id: str, changes: Mapping[str, str]) -> None:
        self.updated.append((job_id, dict(changes)))

    def add_partition(self, name: str, nodes: Sequence[NodeInfo], **changes: Any) -> None:
        values = {"is_default": False, "is_up": True, "max_time": None, "max_nodes": None, "grace": 0, **changes}
        self.known[name] = PartitionInfo(
            name=name, nodes="", total_nodes=len(nodes), priority_tier=1, preempt_mode="OFF", **values
        )
        self.members[name] = list(nodes)


@pytest.fixture
def slurm() -> FakeSlurm:
    return FakeSlurm()


@pytest.fixture
def make_node() -> Callable[..., NodeInfo]:
    def build(name: str, cpus: int = 4, gpus: int = 2, **changes: Any) -> NodeInfo:
        values = {
            "state": "idle",
            "cpus_idle": cpus,
            "gpus_idle": gpus,
            "memory": 8000,
            "features": frozenset(),
            **changes,
        }
        return NodeInfo(name=name, cpus=cpus, gpus=gpus, memory_idle=values["memory"], **values)

    return build


@pytest.fixture
def make_job() -> Callable[..., JobInfo]:
    def build(job_id: str, state: str = "RUNNING", **changes: Any) -> JobInfo:
        values = {"nodes": ("n1",), "preempt_time": None, "end_time": None, "name": "x", "comment": "", **changes}
        return JobInfo(
            job_id=job_id,
            state=state,
            partition="scavenger",
            restarts=0,
            reason="",
            time_limit=600.0,
            **values,
        )

    return build
