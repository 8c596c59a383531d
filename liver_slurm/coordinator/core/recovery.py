"""Recovery: fold the journal into a state. A fresh run starts; an interrupted one goes on where its journal ends."""

from __future__ import annotations

from collections.abc import Sequence

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core.records import BegunAnew, Committed, Ended, EpochStarted, Record
from liver_slurm.coordinator.core.state import Lifecycle, RunPhase, RunState, Settings
from liver_slurm.rundir.worker_names import is_guaranteed, is_of_successor
from liver_slurm.scheduler.ports import JobStart


def next_epoch(records: Sequence[Record]) -> int:
    """Return the epoch of the coordinator that starts now."""
    return 1 + max((record.epoch for record in records if isinstance(record, EpochStarted)), default=0)


def ended(records: Sequence[Record]) -> Ended | None:
    """Return the run's outcome, if it was decided before; a run that was restarted since has none."""
    last = next((record for record in reversed(records) if isinstance(record, Ended | BegunAnew)), None)
    return last if isinstance(last, Ended) else None


def recover(records: Sequence[Record], settings: Settings, now: float) -> RunState:
    """Return the state in which a coordinator of ``settings`` begins at time ``now``.

    With a commit record the run is RECOVERING: the committed world is the live one, whether or not its members have
    heard so; they register and are told. An attempt without a commit record is over: its workers are told when they
    register. Training that is held for a request stays held. A run that was restarted since is STARTING, from the
    checkpoint that was chosen then; of the worlds before only their generation numbers are left, which are never used
    again.
    """
    state = RunState(settings=settings, now=now, lifecycle=Lifecycle(started=now))
    for record in records:
        state = state.apply(record)
    world, barriers = state.world, state.barriers
    if world.unresolved:
        generation = max(world.unresolved)
        world = replace(world, left_attempt=(generation, world.unresolved[generation]))
    barriers = barriers.left((goal.number, goal.at_step) for goal in state.resizes.goals)
    phase = RunPhase.STARTING if world.live is None else RunPhase.RECOVERING
    lifecycle = replace(state.lifecycle, phase=phase)
    return replace(state, world=world, barriers=barriers, lifecycle=lifecycle)


def why_anew(records: Sequence[Record], start: JobStart) -> str | None:
    """Return why the coordinator of ``start`` cannot go on with the live world; None: it can, or there is none.

    A job that is started again has none of its old processes. That also holds for a run that failed: whoever has Slurm
    start its job again wants it to go on. One that finished, or was cancelled on request, stays so.
    """
    last = next((record for record in reversed(records) if isinstance(record, EpochStarted)), None)
    if last is not None and start.job_id and last.job_id and last.job_id != start.job_id:
        return _why_not_succeed(records, last.job_id, start.job_id)
    if last is None or not start.job_id or last.job_id != start.job_id or last.restarts >= start.restarts:
        return None
    ended = next((record for record in reversed(records) if isinstance(record, Ended | BegunAnew)), None)
    if isinstance(ended, Ended) and ended.code != 1:
        return None
    return f"job {start.job_id} was requeued: start {start.restarts + 1}"


def why_strange(records: Sequence[Record], protocol: int) -> str | None:
    """Return why a coordinator of this ``protocol`` must not go on with the run: its workers would be turned away.

    None: it understands them, or there are none that train.
    """
    state = [record for record in records if isinstance(record, Committed | BegunAnew | Ended)]
    last = next((one.protocol for one in reversed(records) if isinstance(one, EpochStarted) and one.protocol), protocol)
    if last == protocol or not state or not isinstance(state[-1], Committed):
        return None
    return (
        f"the workers of this run speak protocol {last}, this version of liver-slurm {protocol}: they train on without "
        "a coordinator; install the version again that they have, or cancel the run and resume it"
    )


def _why_not_succeed(records: Sequence[Record], before: str, job_id: str) -> str | None:
    """Return why the successor cannot go on with the live world: not all guaranteed members are its own.

    It may be, although nothing was handed over, if the job before was killed after its last commit record.
    """
    last = next((one for one in reversed(records) if isinstance(one, Committed | BegunAnew | Ended)), None)
    if not isinstance(last, Committed):
        return None
    lost = [member for member in last.members if is_guaranteed(member) and not is_of_successor(member, job_id)]
    return f"job {before} ended before job {job_id} could take over" if lost else None
