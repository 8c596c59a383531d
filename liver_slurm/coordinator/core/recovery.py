"""From the journal to a state: a fresh run starts, an interrupted one goes on where its journal ends. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from liver_slurm.coordinator.core import history, node_release
from liver_slurm.coordinator.core.records import (
    AttemptAborted,
    AttemptStarted,
    BegunAnew,
    BoundaryClosed,
    BoundaryProposed,
    Committed,
    Ended,
    Entered,
    EpochStarted,
    NodesGivenBack,
    Record,
    RequestClosed,
    RequestTaken,
)
from liver_slurm.coordinator.core.state import Attempt, Phase, RunState, Settings
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir.worker_names import is_guaranteed, is_of_successor
from liver_slurm.scheduler.ports import JobStart


def next_epoch(records: Sequence[Record]) -> int:
    """The epoch of the coordinator that starts now."""
    return 1 + max((record.epoch for record in records if isinstance(record, EpochStarted)), default=0)


def ended(records: Sequence[Record]) -> Ended | None:
    """The run's outcome, if it was decided before; a run that has begun anew since has none."""
    last = next((record for record in reversed(records) if isinstance(record, Ended | BegunAnew)), None)
    return last if isinstance(last, Ended) else None


def recover(records: Sequence[Record], settings: Settings, now: float) -> RunState:
    """The state in which a coordinator of ``settings`` begins at time ``now``.

    With a commit record the run is RECOVERING: the committed world lives, whether or not its members have heard so;
    they register and are told. An attempt without a commit record is over: its workers are told when they register.
    A run that has begun anew since is STARTING, from the checkpoint that was chosen then; of the worlds before only
    their generation numbers are left, which are never used again.
    """
    state = RunState(settings=settings, phase=Phase.STARTING, now=now, started=now)
    opened: dict[int, AttemptStarted] = {}
    boundaries: set[int] = set()
    last: Committed | None = None
    entered = False
    for record in records:
        if isinstance(record, AttemptStarted):
            opened[record.generation] = record
            state = replace(state, next_generation=record.generation + 1)
        elif isinstance(record, AttemptAborted):
            opened.pop(record.generation, None)
        elif isinstance(record, Committed):
            opened.pop(record.generation, None)
            last, entered = record, False
            boundaries.clear()  # those of the world before
        elif isinstance(record, Entered):
            entered = True
        elif isinstance(record, BegunAnew):
            opened.clear()
            boundaries.clear()
            last, entered = None, False
            begins = replace(state.settings, checkpoint=record.checkpoint, start_step=record.step)
            state = node_release.begun_anew(replace(state, settings=begins, anew_from=state.next_generation))
        elif isinstance(record, NodesGivenBack):
            state = node_release.noted(state, record)
        elif isinstance(record, BoundaryProposed):
            boundaries.add(record.boundary)
            state = replace(state, next_boundary=record.boundary + 1)
        elif isinstance(record, BoundaryClosed):
            boundaries.discard(record.boundary)
        else:
            state = _request(state, record)
    for attempt in opened.values():  # at most one: reconfigurations never overlap
        involved = frozenset(attempt.members) | frozenset(attempt.source_members)
        state = replace(state, open_attempt=(attempt.generation, involved))
    state = replace(state, open_boundaries=tuple(sorted(boundaries)))
    return _with_world(state, last, entered) if last is not None else state


def _request(state: RunState, record: Record) -> RunState:
    if isinstance(record, RequestTaken):
        layout = Layout.parse(record.layout) if record.layout else None
        goal = ResizeGoal(record.number, layout, record.workers, record.at_step, give_back=record.give_back)
        ordered = sorted((*state.requests, goal), key=lambda one: one.at_step)  # -1, now, before those scheduled
        return replace(state, requests=tuple(ordered), next_request=record.number + 1)
    if isinstance(record, RequestClosed):
        pinned = next((goal for goal in state.requests if goal.number == record.number), state.pinned)
        rest = tuple(goal for goal in state.requests if goal.number != record.number)
        return replace(state, requests=rest, pinned=pinned if record.fulfilled else state.pinned)
    return history.recall(state, record)


def _with_world(state: RunState, last: Committed, entered: bool) -> RunState:
    live = World(last.generation, Layout.parse(last.layout), last.members, last.step)
    attempt = None
    if not entered:
        source = None
        if last.source_members:
            source = World(last.source_generation, Layout.parse(last.source_layout), last.source_members, -1)
        attempt = Attempt(
            target=live,
            source=source,
            reason=last.reason,
            cause=last.cause,
            started=state.now,
            deadline=state.now + state.settings.config.job.prepare_timeout,
            committed=True,
            committed_at=state.now,
            stats=last.stats,
        )
    return replace(state, phase=Phase.RECOVERING, live=live, attempt=attempt)


def why_anew(records: Sequence[Record], start: JobStart) -> str | None:
    """Why the coordinator of ``start`` cannot go on with the journal's live world; None: it can, or there is none.

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


def _why_not_succeed(records: Sequence[Record], before: str, job_id: str) -> str | None:
    """Why the successor cannot go on with the live world: it is not made of its own workers and standbys yet.

    It may be, although nothing was handed over, if the job before was killed after its last commit record.
    """
    last = next((one for one in reversed(records) if isinstance(one, Committed | BegunAnew | Ended)), None)
    if not isinstance(last, Committed):
        return None
    lost = [member for member in last.members if is_guaranteed(member) and not is_of_successor(member, job_id)]
    return f"job {before} ended before job {job_id} could take over" if lost else None
