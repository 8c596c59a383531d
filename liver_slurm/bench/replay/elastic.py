"""The product's run on a replayed trace: a job as users submit it, on the cluster that the replay has brought up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from liver_slurm.app.api import Job, submit_config
from liver_slurm.base.errors import LiverError
from liver_slurm.bench.replay.measured import of_ledger
from liver_slurm.bench.replay.owner import Owner, wait_until
from liver_slurm.bench.replay.stage import Replay
from liver_slurm.observability.ledger.document import Ledger, make_ledger
from liver_slurm.observability.ledger.facts import read_facts
from liver_slurm.rundir.event_log import read_events
from liver_slurm.rundir.events import WorldLive
from liver_slurm.rundir.paths import RunDir

START = 300.0
"""Seconds that a run may take to train its first step, on a machine that has other things to do."""


def replay_elastic(replay: Replay, say: Callable[[str], None]) -> dict[str, Any]:
    """Replay the trace under a run of the product; returns what was measured, with ``run`` naming its directory.

    Raises:
        LiverError: the run did not begin, or ended before the trace did.
    """
    config = replay.config()
    with replay.cluster():
        owner = Owner(replay.names(), replay.reclaims, replay.folder / "production")
        job = submit_config(config)
        say(f"elastic: job {job.job_id}, {job.run_dir.path}")
        try:
            wait_until(lambda: _trains(job), f"the run did not train; see {job.run_dir.logs}; it did not", START)
            begin = owner.begin()
            over = job.end_watch()

            def turn() -> None:
                if over():
                    raise LiverError(f"the run ended before its trace; see {job.run_dir.logs}")

            end = owner.play(replay.seconds, turn)
        finally:
            job.cancel()
        wait_until(job.end_watch(), "the run did not end", START)
    offered = replay.setting().offered_device_s(config)
    found = of_ledger(ledger_of(job.run_dir.path, end).account, begin, end, offered)
    say(f"elastic: ETTR {found.ettr:.4f}, capacity goodput {found.capacity_goodput:.4f}, {found.changes} changes")
    return {
        "run": str(job.run_dir.path), "begin": begin, "end": end, "offered_device_s": offered,
        "figures": found.document(), "reclaims": owner.document(),
    }  # fmt: skip


def _trains(job: Job) -> bool:
    if job.end_watch()():
        raise LiverError(f"the run ended before it trained; see {job.run_dir.logs}")
    return any(isinstance(event, WorldLive) for event in read_events(job.run_dir.events))


def ledger_of(run: Path, now: float) -> Ledger:
    """Return the ledger of a run."""
    return make_ledger(read_facts(RunDir(run), now))
