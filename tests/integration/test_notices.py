"""Every way in which Slurm takes a standby job back, one after the other, in one run on one real cluster."""

from __future__ import annotations

import pytest
from notice_lab import NoticeRun, Row, partition, slurm

pytestmark = [
    pytest.mark.slurm,
    # One CPU a node: coordinator, live worker, standby.
    pytest.mark.cluster(nodes=3, cpus_per_node=1, gpus_per_node=0, grace=15),
]


def test_each_notice_is_a_shrink(notices: NoticeRun) -> None:
    for mode, grace in (("CANCEL", 15), ("REQUEUE", 5), ("CANCEL", 0)):
        partition(PreemptMode=mode, GraceTime=grace)
        (standby,) = notices.grown()
        notices.preempt(Row("preemption by tier", mode, f"{grace} s"), standby)
    (standby,) = notices.grown()
    notices.notice(Row("scancel", "", ""), standby, lambda: slurm("scancel", standby))
    (standby,) = notices.grown()
    notices.notice(Row("scancel --signal=USR2", "", ""), standby, lambda: slurm("scancel", "--signal=USR2", standby))
    notices.finish()
