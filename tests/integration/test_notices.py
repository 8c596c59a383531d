"""Every way in which Slurm takes a standby job back, one after the other, in one run on one real cluster."""

from __future__ import annotations

import time

import psutil
import pytest
from notice_lab import PATIENCE, NoticeRun, Row, partition, slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(1800),  # several standbys start, one after the other
    # One CPU a node: coordinator, live worker, standby.
    pytest.mark.cluster(nodes=3, cpus_per_node=1, gpus_per_node=0, grace=15),
]


def test_preemption_and_the_owner(notices: NoticeRun) -> None:
    for mode, grace in (("CANCEL", 15), ("REQUEUE", 5), ("CANCEL", 0)):
        partition(PreemptMode=mode, GraceTime=grace)
        (standby,) = notices.grown()
        notices.preempt(Row("preemption by tier", mode, f"{grace} s"), standby)
    (standby,) = notices.grown()
    notices.notice(Row("scancel"), standby, lambda: slurm("scancel", standby))
    (standby,) = notices.grown()
    notices.notice(Row("scancel --signal=USR2"), standby, lambda: slurm("scancel", "--signal=USR2", standby))
    notices.finish()


@pytest.mark.long
def test_preemption_with_the_other_modes_and_graces(notices: NoticeRun) -> None:
    for mode, grace in (("CANCEL", 5), ("REQUEUE", 15), ("REQUEUE", 0)):
        partition(PreemptMode=mode, GraceTime=grace)
        (standby,) = notices.grown()
        notices.preempt(Row("preemption by tier", mode, f"{grace} s"), standby)
    for number in ("TERM", "USR1"):
        (standby,) = notices.grown()
        notices.notice(
            Row(f"scancel --signal={number}"), standby, lambda at=standby, by=number: slurm("scancel", f"-s{by}", at)
        )
    notices.finish()


@pytest.mark.long
def test_what_admins_do(notices: NoticeRun) -> None:
    (standby,) = notices.grown()
    notices.notice(Row("scontrol suspend"), standby, lambda: slurm("scontrol", "suspend", standby), node_frees=False)
    notices.eventually(
        lambda: notices.announced(standby, "suspension"), "the coordinator knows that it is suspended", PATIENCE
    )
    (waiting,) = notices.job.status()["standbys"]
    process = psutil.Process(waiting["pid"])
    notices.eventually(lambda: process.status() == psutil.STATUS_STOPPED, "it is stopped", PATIENCE)
    slurm("scontrol", "resume", standby)
    assert notices.grown() == [standby], "it counts again"

    node = notices.node(standby)
    notices.notice(Row("node DRAIN"), standby, lambda: notices.update_node(node, "DRAIN"))
    notices.update_node(node, "RESUME")

    (standby,) = notices.grown()
    ahead = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 50))
    wanted = (f"Nodes={node}", f"StartTime={ahead}", "Duration=60", "Users=root", "Flags=MAINT,IGNORE_JOBS")
    notices.notice(
        Row("maintenance in 50 s"), standby, lambda: slurm("scontrol", "create", "ReservationName=service", *wanted)
    )
    slurm("scontrol", "delete", "ReservationName=service")

    (standby,) = notices.grown()
    # It is up again by itself (ReturnToService=2), and the job is over before its workers are.
    notices.notice(Row("node DOWN"), standby, lambda: notices.update_node(node, "DOWN"), node_frees=False)
    notices.grown()
    notices.finish()


@pytest.mark.long
def test_the_time_limit(notices: NoticeRun) -> None:
    (standby,) = notices.grown()
    notices.notice(Row("time limit"), standby, lambda: slurm("scontrol", "update", f"JobId={standby}", "TimeLimit=1"))
    notices.finish()


@pytest.mark.long
def test_signals_that_are_lost(notices_without_signals: NoticeRun) -> None:
    notices = notices_without_signals
    for mode, grace in (("CANCEL", 15), ("CANCEL", 0), ("REQUEUE", 15)):
        partition(PreemptMode=mode, GraceTime=grace)
        (standby,) = notices.grown()
        notices.preempt(Row("preemption, signal lost", mode, f"{grace} s"), standby)
    (standby,) = notices.grown()
    notices.notice(Row("scancel, signal lost"), standby, lambda: slurm("scancel", standby))
    (standby,) = notices.grown()
    notices.notice(
        Row("time limit, signal lost"), standby, lambda: slurm("scontrol", "update", f"JobId={standby}", "TimeLimit=1")
    )
    assert not [event for event in notices.events("notice") if event["kind"] == "signal"]
    notices.finish()
