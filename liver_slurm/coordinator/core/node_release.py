"""Carrying out what :mod:`giving` decides: workers that a request leaves out exit, then Slurm takes their nodes back.

It concerns the job that the coordinator belongs to. A request holds until the next one: a successor job, or the same
job when Slurm starts it again, has all the nodes of the job file, and gives back what the request leaves out.
"""

from __future__ import annotations

from dataclasses import replace

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.coordinator.core import giving, handover, reconfiguration
from liver_slurm.coordinator.core.io import GiveBack, GivenBack
from liver_slurm.coordinator.core.records import NodesGivenBack
from liver_slurm.coordinator.core.state import Phase, RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir import events
from liver_slurm.rundir.worker_names import task_number


def judge(state: RunState, goal: ResizeGoal) -> None:
    """Whether a request lets nodes of the live job go.

    Raises:
        BadInput: it does not, or not now.
    """
    job_id = state.settings.job_id
    if not state.settings.heterogeneous:
        raise BadInput(
            "--give-back: this run has no live job of several components in Slurm, as `liver-slurm submit` makes it, "
            "so it has no nodes to give back; leave --give-back out"
        )
    if handover.under_way(state):
        # Which nodes are free is judged by the job that holds the world, and in a moment that is another one.
        raise BadInput("--give-back: the run is moving to its successor job; ask again when `status` shows that job")
    parts, there, size = _components(state), _staying(state, job_id), _world_size(state, goal)
    if giving.leavers(parts, there, len(there) - size)[1]:
        return
    most = giving.largest(parts, there)
    instead = f"ask for {most} or fewer" if most else "none of its nodes can go"
    why = "a node goes back with all of its workers" if size < len(there) else "that is no smaller world"
    raise BadInput(
        f"--give-back: the live job {job_id} has {len(there)} workers, and {size} of them leave no node free "
        f"({why}); {instead}, or leave --give-back out"
    )


def go_first(state: RunState, goal: ResizeGoal | None) -> tuple[tuple[str, ...], int, str]:
    """Guaranteed workers that a world for ``goal`` leaves out before others; nodes that frees; and why no more.

    While the run moves to a successor these are the successor's.
    """
    if goal is None or not goal.give_back:
        return (), 0, ""
    successor = state.live_job.successor if state.live_job is not None and handover.is_why(state) else None
    job_id = successor.job_id if successor is not None else state.settings.job_id
    parts = giving.components(state.settings.config.live, {}, ()) if successor is not None else _components(state)
    there = _staying(state, job_id)
    chosen, nodes, why = giving.leavers(parts, there, len(there) - _world_size(state, goal))
    return tuple(there[number] for number in chosen), nodes, why


def advance(turn: Transition) -> None:
    """While the run is as its last request left it: who is on a node that can go exits, and free nodes go."""
    state = turn.state
    pinned, live, settings = state.pinned, state.live, state.settings
    if pinned is None or not pinned.give_back or not settings.heterogeneous or state.requests:
        return
    if live is None or state.phase is not Phase.STEADY or state.interrupted or handover.under_way(state):
        return
    # Workers that are still there may not have registered yet with a coordinator that was started again.
    known = settings.epoch == 1 or turn.now > state.started + settings.config.job.lost_after
    own = _workers(state, settings.job_id)
    needed = {number for number, name in own.items() if name in live.members}
    for part in _components(state):
        left = part.left(needed)
        if left == len(part.nodes) or state.refused.get(part.number) == left:
            continue
        # All at once: without accounting Slurm takes nodes of a component only once.
        going = [own[number] for node in part.nodes[left:] for number in node if number in own]
        for name in going:
            if not state.workers[name].dismissed:
                reconfiguration.dismiss(turn, name, "its node is given back")
        if known and not going and turn.state.giving_back is None:
            turn.update(giving_back=part.number)
            turn.actions.append(GiveBack(part.number, left))


def given(turn: Transition, answer: GivenBack) -> None:
    """Slurm has taken nodes back, or refused to."""
    turn.update(giving_back=None)
    if answer.error:
        state = turn.state
        turn.update(fixed=state.fixed | {answer.component}, refused={**state.refused, answer.component: answer.kept})
        turn.emit(events.NodesKept(component=answer.component, reason=answer.error))
        return
    record = NodesGivenBack(
        job_id=turn.state.settings.job_id, component=answer.component, kept=answer.kept, again=answer.again
    )
    turn.journal(record)
    turn.state = noted(turn.state, record)
    turn.emit(events.NodesGivenBack(component=answer.component, nodes=answer.nodes, kept=answer.kept))


def noted(state: RunState, record: NodesGivenBack) -> RunState:
    """The state with what the record says, if that is of the live job and not of one before it."""
    if record.job_id != state.settings.job_id:
        return state
    fixed = state.fixed if record.again else state.fixed | {record.component}
    return replace(state, kept={**state.kept, record.component: record.kept}, fixed=fixed)


def begun_anew(state: RunState) -> RunState:
    """The state when the run begins anew: its job has all nodes again, and the request that gave some back is due."""
    pinned = state.pinned
    if pinned is not None and pinned.give_back:
        state = replace(state, pinned=None, requests=(pinned, *state.requests))
    return replace(state, kept={}, fixed=frozenset())


def _world_size(state: RunState, goal: ResizeGoal) -> int:
    """Of the world that fulfils a request: there may be no layout for just as many workers as are asked for."""
    if goal.layout is not None:
        return goal.layout.size
    return feasible_layouts(state.settings.config, goal.workers)[0].size


def _components(state: RunState) -> list[giving.Component]:
    return giving.components(state.settings.config.live, state.kept, state.fixed)


def _workers(state: RunState, job_id: str) -> dict[int, str]:
    """Names of a live job's workers by the number that ``srun`` gave them."""
    found = {}
    for worker in state.workers.values():
        number = task_number(worker.name, job_id)
        if worker.role == "live" and worker.job_id == job_id and number is not None:
            found[number] = worker.name
    return found


def _staying(state: RunState, job_id: str) -> dict[int, str]:
    own = _workers(state, job_id)
    return {number: name for number, name in own.items() if not state.workers[name].dismissed}
