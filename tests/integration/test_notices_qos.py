"""Preemption by QOS, which needs slurmdbd, and the signal of `--signal` in place of SIGTERM."""

from __future__ import annotations

import getpass
import shutil

import pytest
from notice_lab import NoticeRun, Row, slurm

from liver_slurm.devcluster import lifecycle
from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.long,
    pytest.mark.skipif(
        any(shutil.which(name, path=lifecycle.SEARCH_PATH) is None for name in lifecycle.accounting.PROGRAMS),
        reason=f"needs {lifecycle.accounting.PACKAGES}",
    ),
    pytest.mark.cluster(
        nodes=3, cpus_per_node=1, gpus_per_node=0, accounting=True, preempt_type="qos", send_user_signal=True
    ),
    pytest.mark.job(standby={"qos": "low"}),
]


@pytest.fixture
def qos(cluster: lifecycle.Cluster) -> None:
    """Jobs of QOS high preempt those of QOS low."""
    slurm("sacctmgr", "-i", "add", "qos", "low", "GraceTime=15", "PreemptMode=cancel")
    slurm("sacctmgr", "-i", "add", "qos", "high", "Preempt=low", "Priority=100")
    slurm("sacctmgr", "-i", "modify", "user", getpass.getuser(), "set", "qos+=low,high")


def test_preemption_by_qos(qos: None, notices: NoticeRun, client: CommandClient) -> None:
    assert client.qos_grace()["low"] == 15
    for mode, grace in (("cancel", 15), ("requeue", 15), ("cancel", 0)):
        slurm("sacctmgr", "-i", "modify", "qos", "low", "set", f"GraceTime={grace}", f"PreemptMode={mode}")
        (standby,) = notices.grown()
        notices.preempt(Row("preemption by QOS, --signal", mode.upper(), f"{grace} s"), standby, "--qos=high", "-plive")
    assert "SIGUSR2" in {event["reason"] for event in notices.events("notice")}, "the signal of --signal"
    notices.finish()
