"""From Slurm's records to notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.config.schema import StandbySection
from liver_slurm.config.units import warning_seconds
from liver_slurm.scheduler.ports import EvictionNotice
from liver_slurm.scheduler.slurm.notices import Terms, make_terms, standby_job
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo

NOW = 1000.0
TERMS = Terms(kill_wait=30.0, partition_grace={"scavenger": 120.0}, warning=60.0, lead=300.0)
Make = Callable[..., Any]


def notice_of(job: JobInfo, nodes: Any = (), reservations: Any = (), terms: Terms = TERMS) -> EvictionNotice | None:
    found = standby_job(job, {node.name: node for node in nodes}, reservations, terms, NOW)
    assert found is not None
    return found.notice


def reservation(start: float, *flags: str, nodes: tuple[str, ...] = ("n1",), seconds: float = 3600) -> ReservationInfo:
    return ReservationInfo("service", NOW + start, NOW + start + seconds, nodes, frozenset(flags))


@pytest.mark.parametrize(
    ("slurm_state", "state"),
    [
        ("PENDING", "pending"),
        ("CONFIGURING", "pending"),
        ("RUNNING", "running"),
        ("SUSPENDED", "suspended"),
        ("COMPLETING", "ending"),
    ],
)
def test_states(make_job: Make, slurm_state: str, state: str) -> None:
    job = standby_job(make_job("7", slurm_state), {}, (), TERMS, NOW)
    assert job is not None
    assert (job.job_id, job.state, job.nodes) == ("7", state, ("n1",))


@pytest.mark.parametrize("state", ["COMPLETED", "PREEMPTED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"])
def test_a_job_that_is_over_is_no_standby(make_job: Make, state: str) -> None:
    assert standby_job(make_job("7", state), {}, (), TERMS, NOW) is None


@pytest.mark.parametrize(
    ("changes", "kind", "deadline"),
    [
        ({}, None, None),
        ({"end_time": NOW + 600}, None, None),
        ({"preempt_time": NOW - 1, "end_time": NOW + 119}, "preemption", NOW + 119),
        ({"preempt_time": NOW - 1, "end_time": NOW - 1}, "preemption", NOW + 29),  # GraceTime 0: KillWait is the grace
        ({"preempt_time": NOW - 1}, "preemption", NOW + 29),
        ({"preempt_time": NOW - 99, "end_time": NOW - 3}, "preemption", NOW + 30),  # Slurm is late
        ({"end_time": NOW + 59}, "time limit", NOW + 59),
        ({"end_time": NOW - 20}, "time limit", NOW + 30),
        ({"end_time": NOW + 61}, None, None),
        ({"state": "COMPLETING", "end_time": NOW - 2}, "ending", NOW + 28),
        ({"state": "COMPLETING"}, "ending", None),
        ({"state": "SUSPENDED", "end_time": NOW + 5}, "suspension", None),
    ],
)
def test_what_the_jobs_record_says(
    make_job: Make, changes: dict[str, Any], kind: str | None, deadline: float | None
) -> None:
    found = notice_of(make_job("7", changes.pop("state", "RUNNING"), **changes))
    assert (found.kind, found.deadline) == (kind, deadline) if found is not None else kind is None


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("allocated+drain", "node n1 is drained"),
        ("mixed+drain", "node n1 is drained"),
        ("draining", "node n1 is drained"),
        ("allocated+fail", "node n1 is about to fail"),
        ("allocated+drain+reboot_requested", "node n1 is drained"),
        ("allocated+reboot_requested", "node n1 is about to be rebooted"),
        ("allocated", None),
        ("mixed+planned", None),
    ],
)
def test_what_the_nodes_state_says(make_job: Make, make_node: Make, state: str, reason: str | None) -> None:
    nodes: list[NodeInfo] = [make_node("n1", state=state), make_node("n2", state="idle+drain")]
    found = notice_of(make_job("7"), nodes)
    assert (found.reason if found is not None else None) == reason
    assert found is None or found.deadline is None, "nobody kills a job on a drained node"


@pytest.mark.parametrize(
    ("planned", "deadline"),
    [
        (reservation(100, "MAINT", "SPEC_NODES"), NOW + 100),
        (reservation(100, "IGNORE_JOBS", "SPEC_NODES"), NOW + 100),
        (reservation(-10, "MAINT"), None),
        (reservation(100, "SPEC_NODES"), "none"),  # waits for running jobs
        (reservation(100, "MAINT", nodes=("n2",)), "none"),
        (reservation(301, "MAINT"), "none"),  # not yet
        (reservation(100, "MAINT", "TIME_FLOAT"), "none"),  # always as far ahead
        (reservation(-10, "MAINT", seconds=5), "none"),
    ],
)
def test_what_a_reservation_says(make_job: Make, planned: ReservationInfo, deadline: float | str | None) -> None:
    found = notice_of(make_job("7"), reservations=[planned])
    if deadline == "none":
        assert found is None
    else:
        assert found is not None
        assert (found.kind, found.reason, found.deadline) == ("reservation", "node n1 is reserved: service", deadline)


def test_the_nearest_deadline_counts(make_job: Make, make_node: Make) -> None:
    job = make_job("7", preempt_time=NOW, end_time=NOW + 120)
    found = notice_of(job, [make_node("n1", state="allocated+drain")], [reservation(50, "MAINT")])
    assert found is not None
    assert (found.kind, found.deadline) == ("reservation", NOW + 50)


@pytest.mark.parametrize(
    ("kill_wait", "partition", "qos", "warning", "grace"),
    [
        (30.0, 120.0, None, 60.0, 30.0),  # it may be a scancel
        (30.0, 5.0, None, 60.0, 5.0),
        (30.0, 0.0, None, 60.0, 30.0),  # GraceTime 0: SIGTERM, then KillWait
        (30.0, 120.0, None, 10.0, 10.0),  # it may be the warning of the time limit
        (30.0, 5.0, 20.0, 60.0, 20.0),  # the QOS decides, not the partition
        (30.0, 5.0, 0.0, 60.0, 30.0),
    ],
)
def test_what_a_bare_signal_leaves(
    make_job: Make, kill_wait: float, partition: float, qos: float | None, warning: float, grace: float
) -> None:
    by_qos = None if qos is None else {"low": qos}
    terms = Terms(kill_wait, {"scavenger": partition}, by_qos, warning)
    job = standby_job(make_job("7", qos="low"), {}, (), terms, NOW)
    assert job is not None
    assert job.grace == grace


def test_terms_from_the_clusters_settings() -> None:
    scavenger = PartitionInfo("scavenger", False, True, "n1", 1, None, None, 1, "CANCEL", 7)
    settings = {"KillWait": "12 sec", "PreemptType": "preempt/partition_prio"}
    terms = make_terms(StandbySection(), 300.0, settings, [scavenger], {"low": 3.0})
    assert terms == Terms(12.0, {"scavenger": 7.0}, None, 30.0, 300.0)
    by_qos = make_terms(StandbySection(), 300.0, {"PreemptType": "preempt/qos"}, [scavenger], {"low": 3.0})
    assert by_qos.qos_grace == {"low": 3.0}


@pytest.mark.parametrize(
    ("options", "seconds"),
    [({}, 30), ({"grace": 4.5}, 5), ({"signal": "USR1@45"}, 45), ({"signal": "USR1"}, 60), ({"grace": 0.1}, 1)],
)
def test_warning(options: dict[str, Any], seconds: float) -> None:
    assert warning_seconds(StandbySection(**options)) == seconds


times = st.one_of(st.none(), st.integers(900, 1400).map(float))


@given(
    state=st.sampled_from(["RUNNING", "COMPLETING", "SUSPENDED"]),
    preempt_time=times,
    end_time=times,
    kill_wait=st.integers(1, 60),
    start=st.one_of(st.none(), st.integers(-50, 400)),
)
def test_no_deadline_is_later_than_slurm_kills(
    state: str, preempt_time: float | None, end_time: float | None, kill_wait: int, start: int | None
) -> None:
    # LS-21
    job = JobInfo("7", state, "scavenger", ("n1",), preempt_time, 0, "", "", 600.0, end_time, "x", "")
    terms = Terms(float(kill_wait), {}, None, 60.0, 300.0)
    found = standby_job(job, {}, [] if start is None else [reservation(start, "MAINT")], terms, NOW)
    assert found is not None
    notice = found.notice
    if notice is None or notice.deadline is None:
        return
    latest = max(time for time in (preempt_time, end_time, NOW, NOW + (start or 0)) if time is not None) + kill_wait
    assert notice.deadline <= latest
    if start is not None and 0 < start <= 300:
        assert notice.deadline <= NOW + start, "never after the reservation has begun"
