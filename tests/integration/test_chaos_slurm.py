"""Faults to a run on a real cluster: through steps in the run's own jobs, and preemptions through Slurm."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from notice_lab import PATIENCE, NoticeRun

from liver_slurm.base.faults import Fault
from liver_slurm.chaos.preemption import JOB_NAME
from liver_slurm.chaos.reach import Reach
from liver_slurm.chaos.schedule import Strike, Target
from liver_slurm.chaos.targets import targets_of
from liver_slurm.observability.status import from_status
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import StatusRequest
from liver_slurm.rundir import address

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.cluster(nodes=3, cpus_per_node=1, grace=10)]


def targets(run: NoticeRun) -> dict[str, Target]:
    """The run's processes, as its coordinator vouches for them."""
    where = address.read(run.job.run_dir.address_file)
    status = from_status(request(run.job.run_dir, StatusRequest()).result)
    found, unproven = targets_of(status, where, run.job.job_id)
    assert unproven == ""
    return {one.name: one for one in found}


def test_steps_in_the_runs_jobs_and_a_preemption(notices: NoticeRun, eventually: Callable[..., Any]) -> None:
    run = notices
    (standby,) = run.grown(2)
    # As if we were on another host: everything goes through Slurm.
    reach = Reach(run.job.run_dir, run.config.job.name, run.job.job_id, run.client, host="elsewhere")
    found = targets(run)
    for name, target in found.items():
        held = reach.strike(Strike(0, Fault.STOP, target, 1.0))
        assert (name, held.outcome) == (name, "struck")
        assert held.wait(time.monotonic() + PATIENCE) == "undone"
    member = next(one for one in found.values() if one.reclaimable)
    taken = reach.strike(Strike(1, Fault.PREEMPT, member, 600.0))
    said = re.fullmatch(r"struck: job (\d+) of partition prod has its node", taken.outcome)
    assert said is not None, taken.outcome
    (other,) = run.client.jobs([said[1]])
    assert (other.partition, other.name) == ("prod", JOB_NAME)
    run.left(standby)
    taken.release()
    eventually(lambda: len(run.worlds()[-1]["members"]) == 2, "the node is used again", PATIENCE)
    killed = reach.strike(Strike(2, Fault.KILL, targets(run)["coordinator"], 0.0))
    assert killed.outcome == "struck"
    eventually(lambda: run.events("recovered"), "a new coordinator", PATIENCE)
    run.alive()
