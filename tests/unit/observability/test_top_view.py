"""One moment of a run: where its workers are, which of them will go, and how long it will take."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from liver_slurm.config.schema import ComponentSection, JobConfig, LiveSection, StandbySection
from liver_slurm.observability.history import RunHistory
from liver_slurm.observability.status import RunStatus, StandbyJobStatus, WorkerStatus
from liver_slurm.observability.top_view import Contact, NodeRow, TopView, top_view
from liver_slurm.rundir.events import Notice, to_document
from liver_slurm.rundir.metrics import StepMetrics

ANSWERS = Contact(since=999.0, answered=True)
CONFIG = JobConfig(live=LiveSection(partition="live"), standby=StandbySection(partitions=("scavenger",)))


def worker(name: str, rank: int | None = None, host: str = "n1", job_id: str | None = "7") -> WorkerStatus:
    return WorkerStatus(worker=name, rank=UNSET if rank is None else rank, host=host, job_id=job_id)


def status(**changes: Any) -> RunStatus:
    plain = RunStatus(
        state="training", step=100, steps=200, generation=0, layout="tp1pp1dp2", target=None, workers=[], standbys=[],
        last_reconfiguration=None, reason="", job_id="7",
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def steps(*ends: float) -> list[StepMetrics]:
    return [
        StepMetrics(
            step=number, loss=1.0, grad_norm=1.0, lr=1.0, tokens=1, consumed_samples=1, generation=0,
            layout="tp1pp1dp2", start=end - 1.0, end=end,
        )
        for number, end in enumerate(ends, 1)
    ]  # fmt: skip


def view(
    told: RunStatus,
    *notices: Notice,
    config: JobConfig = CONFIG,
    contact: Contact = ANSWERS,
    trained: list[StepMetrics] | None = None,
) -> TopView:
    history = RunHistory()
    for notice in notices:
        history.add(to_document(notice))
    return top_view(1000.0, 0.0, config, told, history, trained or [], contact)


def test_workers_are_gathered_by_partition_and_node() -> None:
    told = status(
        workers=[worker("live-0", 0), worker("live-1", 1), worker("standby-9-0", 2, "n10", "9")],
        standbys=[worker("standby-9-1", None, "n10", "9"), worker("standby-8-0", None, "n9", "8")],
    )
    assert view(told).nodes == (
        NodeRow("n1", "live", (0, 1), 0, False),
        NodeRow("n9", "scavenger", (), 1, False),
        NodeRow("n10", "scavenger", (2,), 1, False),
    )


def test_a_node_with_a_notice_comes_first() -> None:
    told = status(workers=[worker("live-0", 0), worker("standby-9-0", 1, "n9", "9")])
    found = view(told, Notice(worker="standby-9-0", host="n9", kind="preemption", deadline=1030.0))
    assert [(row.host, row.leaving) for row in found.nodes] == [("n9", True), ("n1", False)]


def test_the_partition_of_a_standby_is_that_of_its_job() -> None:
    config = dataclasses.replace(CONFIG, standby=StandbySection(partitions=("idle", "scavenger")))
    job = StandbyJobStatus(job_id="9", state="running", nodes=["n9"], notice=None, partition="idle")
    told = status(standbys=[worker("standby-9-0", None, "n9", "9"), worker("standby-8-0", None, "n8", "8")])
    told = msgspec.structs.replace(told, standby_jobs=[job])
    assert {row.host: row.partition for row in view(told, config=config).nodes} == {"n9": "idle", "n8": ""}


def test_the_partition_of_a_guaranteed_worker_is_that_of_its_component() -> None:
    parts = (ComponentSection(nodes=2, partition="big"), ComponentSection(nodes=1, tasks_per_node=2))
    config = dataclasses.replace(CONFIG, live=LiveSection(partition="live", component=parts))
    told = status(workers=[worker(f"live-{task}", task, f"n{task}") for task in range(4)])
    assert [row.partition for row in view(told, config=config).nodes] == ["big", "big", "live", "live"]


def test_plain_processes_are_in_no_partition() -> None:
    told = status(workers=[worker("live-0", 0, "here", None)], job_id="")
    assert view(told).nodes == (NodeRow("here", "", (0,), 0, False),)


def test_notices_of_one_node_are_one_row_and_the_most_urgent_comes_first() -> None:
    told = status(workers=[worker("standby-9-0", 1, "n9", "9")], standbys=[worker("standby-9-1", None, "n9", "9")])
    both = {"host": "n9", "kind": "preemption", "reason": "job 9", "deadline": 1030.0}
    found = view(
        told,
        Notice(worker="standby-8-0", host="n8", kind="drain"),
        Notice(worker="standby-9-1", **both),
        Notice(worker="standby-9-0", **both),
        Notice(worker="standby-7-0", host="n7", kind="preemption", deadline=1010.0),
    )
    assert [(row.host, row.workers, row.ranks) for row in found.notices] == [
        ("n7", ("standby-7-0",), ()),
        ("n9", ("standby-9-0", "standby-9-1"), (1,)),
        ("n8", ("standby-8-0",), ()),
    ]


def test_a_step_is_overdue_after_many_times_its_usual_time() -> None:
    assert view(status(), trained=steps(990.0, 991.0)).overdue_s is None
    late = view(status(), trained=steps(980.0, 981.0))
    assert (late.overdue_s, late.steps_per_s, late.remaining_s) == (19.0, 1.0, 100.0)
    assert view(status(state="starting"), trained=steps(980.0, 981.0)).overdue_s is None


def test_workers_that_hear_of_no_coordinator_end_after_a_while() -> None:
    away = Contact(since=900.0, answered=True, error="no answer")
    assert view(status(), contact=away).orphan_s == CONFIG.job.orphan_timeout - 100.0
    assert view(status()).orphan_s is None
    assert view(status(state="pending"), contact=away).orphan_s is None


@pytest.mark.parametrize("state", ["finished", "failed", "cancelled", "stopped"])
def test_of_a_run_that_is_over_nobody_is_left(state: str) -> None:
    found = view(status(state=state, workers=[worker("live-0", 0)]), Notice(worker="live-0"), trained=steps(1.0, 2.0))
    assert (found.over, found.nodes, found.notices, found.remaining_s) == (True, (), (), None)
