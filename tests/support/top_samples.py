"""Moments of runs, made up, for tests of what ``liver-slurm top`` shows."""

from __future__ import annotations

from msgspec import UNSET

from liver_slurm.observability.history import Happening, Preparing
from liver_slurm.observability.status import RunStatus, StandbyJobStatus, WorkerStatus
from liver_slurm.observability.top_view import Contact, NodeRow, NoticeRow, TopView

NOW = 1_800_000_000.0


def training() -> TopView:
    """Eight workers on three nodes, one of them leaving, and a target world in its second phase."""
    workers = [WorkerStatus(rank=rank, worker=f"live-{rank}") for rank in range(8)]
    status = RunStatus(
        run_id="r", state="training", step=1234, steps=20000, generation=7, layout="tp2pp1dp4", target=None,
        workers=workers, standbys=[WorkerStatus(worker="standby-99-0", warm=True), WorkerStatus(worker="standby-99-1")],
        standby_jobs=[
            StandbyJobStatus(job_id="98", state="running", nodes=["n5"], notice=None, partition="scavenger"),
            StandbyJobStatus(job_id="99", state="pending", nodes=[], notice=None, partition="scavenger"),
        ],
        last_reconfiguration=None, reason="", name="gpt", job_id="4711", run_dir="/shared/runs/gpt-1.3b-20270115-0800",
        loss=2.3456, tokens_per_s=123456.7, tflops=400.04, mfu=0.4045,
    )  # fmt: skip
    return TopView(
        time=NOW,
        created=NOW - 3753.0,
        ended=None,
        status=status,
        contact=Contact(since=NOW - 0.5, answered=True),
        preparing=Preparing(8, "tp2pp1dp4", "tp2pp1dp2", "n5 is reclaimed: 4 workers leave", NOW - 3.2, "STREAM"),
        nodes=(
            NodeRow("n5", "scavenger", (4, 5, 6, 7), 0, leaving=True),
            NodeRow("n1", "live", (0, 1, 2, 3), 0, leaving=False),
            NodeRow("n6", "scavenger", (), 2, leaving=False),
        ),
        notices=(
            NoticeRow("n5", "preemption", "job 98 is preempted", NOW + 41.6, ("standby-98-0",), (4, 5, 6, 7)),
            NoticeRow("n6", "drain", "node n6 is drained: fan", None, ("standby-99-0", "standby-99-1"), ()),
        ),
        happenings=(
            Happening(
                NOW - 60.0, "tp2pp1dp2 → tp2pp1dp4", "4 standbys are warm; a step is 1.8 times as fast", 1100, 0.12
            ),
            Happening(NOW - 90.0, "tp2pp1dp2 → tp2pp1dp3", "aborted: standby-97-0 was lost", bad=True),
            Happening(NOW - 95.0, "standby-97-0 lost", "no heartbeat for 30 s", bad=True),
            Happening(NOW - 900.0, "coordinator started again", "start 2"),
        ),
        losses=tuple(6.0 / (1.0 + step / 100.0) ** 0.5 for step in range(400)),
        steps_per_s=2.3141,
        remaining_s=8109.0,
        overdue_s=None,
        orphan_s=None,
    )


def ended() -> TopView:
    """The same run, finished: nobody is left."""
    before = training()
    status = before.status
    over = RunStatus(
        state="finished", step=20000, steps=20000, generation=8, layout="tp2pp1dp2", target=None, workers=[],
        standbys=[], last_reconfiguration=None, reason="all steps are trained", job_id="4711", run_dir=status.run_dir,
        loss=1.9, tokens_per_s=UNSET,
    )  # fmt: skip
    return TopView(
        **{
            **vars(before), "status": over, "ended": NOW - 1.0, "preparing": None, "nodes": (), "notices": (),
            "remaining_s": None,
            "happenings": (Happening(NOW - 1.0, "finished", "all steps are trained", 20000), *before.happenings),
        }
    )  # fmt: skip
