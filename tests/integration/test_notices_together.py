"""Notices that come together, and at the worst moment."""

from __future__ import annotations

import pytest
from notice_lab import ACTING, PATIENCE, NoticeRun, Row, partition, slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(1800),  # several standbys start, one after the other
    # One CPU a node: coordinator, live worker, two standbys.
    pytest.mark.cluster(nodes=4, cpus_per_node=1, gpus_per_node=0, grace=15),
    # Six samples a step, so that three workers are better than two.
    pytest.mark.job(standby={"max_jobs": 2}, elastic={"settle": 3.0}, train={"global_batch_size": 6}),
]


@pytest.mark.long
def test_several_at_once_and_during_a_reconfiguration(notices: NoticeRun) -> None:
    partition(PreemptMode="CANCEL", GraceTime=15)
    first, second = notices.grown(3)
    wanted: list[str] = []
    notices.notice(Row("all standbys at once", "CANCEL", "15 s"), first, lambda: wanted.append(notices.prod(2)))
    assert notices.left(second)["members"] == ["live-0"], "nobody can join while the nodes are taken"
    notices.free(wanted[0])

    first, second = notices.grown(3)
    started, worlds = len(notices.events("reconfiguration_started")), len(notices.worlds())
    notices.pace(ACTING)
    slurm("scancel", first)
    notices.eventually(lambda: len(notices.events("reconfiguration_started")) > started, "a shrink has begun", PATIENCE)
    notices.notice(Row("during a reconfiguration"), second, lambda: slurm("scancel", second))
    notices.left(first)
    assert ["live-0"] in [world["members"] for world in notices.worlds()[worlds:]]

    joiner = notices.eventually(notices.joining, "growing has begun", PATIENCE)
    notices.notice(Row("while its worker joins"), joiner, lambda: slurm("scancel", joiner))
    assert joiner not in notices.grown(3)
    assert not notices.events("worker_lost")
    notices.finish()
