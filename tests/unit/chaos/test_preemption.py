"""A preemption is a job of a higher tier, or a signal where there can be none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.chaos import preemption
from liver_slurm.chaos.preemption import higher_tiers, preempt
from liver_slurm.scheduler.slurm.records import JobInfo, PartitionInfo

JOB = JobInfo(
    job_id="21",
    state="RUNNING",
    partition="scavenger",
    nodes=("n2",),
    preempt_time=None,
    restarts=0,
    reason="",
    time_limit=3600,
    end_time=None,
    name="x",
    comment="",
)


def partition(name: str, tier: int, nodes: str = "n2", up: bool = True) -> PartitionInfo:
    return PartitionInfo(name, False, up, nodes, 1, None, None, tier, "CANCEL", 0)


class Slurm:
    """The part of a client that a preemption needs."""

    def __init__(self, *partitions: PartitionInfo, takes: bool = True, refuses: bool = False) -> None:
        self._partitions, self._takes, self._refuses = list(partitions), takes, refuses
        self.submitted: list[list[str]] = []
        self.cancelled: list[str] = []
        self.signalled: list[tuple[str, str]] = []

    def partitions(self) -> list[PartitionInfo]:
        return self._partitions

    def hostnames(self, expression: str) -> tuple[str, ...]:
        return tuple(expression.split(","))

    def submit(self, script: Path) -> str:
        """As sbatch does, heed the header alone: what followed the script would be the script's own."""
        if self._refuses:
            raise ClusterError("sbatch: not yours")
        shell, *header, work = script.read_text().splitlines()
        assert shell == "#!/bin/bash"
        assert work.startswith("exec sleep ")
        self.submitted.append([line.removeprefix("#SBATCH ") for line in header])
        return str(100 + len(self.submitted))

    def jobs(self, ids: list[str]) -> list[JobInfo]:
        taken = replace(JOB, preempt_time=1.0 if self._takes else None)
        return [taken, replace(JOB, job_id=ids[1], state="PENDING")]

    def cancel(self, ids: list[str]) -> None:
        self.cancelled += ids

    def signal(self, job_id: str, name: str) -> None:
        self.signalled.append((job_id, name))


def done(slurm: Slurm, seconds: float = 30.0) -> Any:
    return preempt(slurm, JOB, seconds)  # type: ignore[arg-type]


def test_partitions_that_may_preempt_lowest_tier_first() -> None:
    known = [partition("scavenger", 1), partition("urgent", 30), partition("prod", 10), partition("down", 10, up=False)]
    assert higher_tiers([*known, partition("far", 20, "n9")], "scavenger", lambda one: one.nodes == "n2") == [
        "prod",
        "urgent",
    ]
    assert higher_tiers(known, "unknown", lambda _: True) == []


def test_a_job_takes_the_node_and_gives_it_back() -> None:
    slurm = Slurm(partition("scavenger", 1), partition("prod", 10))
    held = done(slurm)
    assert held.outcome == "struck: job 101 of partition prod has its node"
    assert {"--partition=prod", "--nodelist=n2", "--exclusive", "--no-requeue", "--output=/dev/null"} <= set(
        slurm.submitted[0]
    )
    assert (held.over(), slurm.cancelled, slurm.signalled) == (None, [], [])
    held.release()
    assert (held.wait(0.0), slurm.cancelled) == ("undone", ["101"])
    late = done(slurm, seconds=0.0)
    assert (late.over(), slurm.cancelled) == ("undone", ["101", "102"])


@pytest.mark.parametrize(
    ("slurm", "why", "cancelled"),
    [
        (Slurm(partition("scavenger", 1)), "no partition of a higher tier has the node", []),
        (Slurm(partition("scavenger", 1), partition("prod", 9), refuses=True), "partition prod: sbatch: not yours", []),
        (Slurm(partition("scavenger", 1), partition("prod", 9), takes=False), "prod did not preempt it", ["101"]),
    ],
)
def test_a_signal_where_no_partition_may(
    slurm: Slurm, why: str, cancelled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preemption, "START", 0.01)
    held = done(slurm)
    assert held.outcome.startswith("struck: by signal, ")
    assert why in held.outcome
    assert (slurm.signalled, slurm.cancelled, held.over()) == ([("21", "TERM")], cancelled, "ended")
