"""Client requests: each is judged at once, and answered with one line if it cannot be granted."""

from __future__ import annotations

from collections.abc import Sequence

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.coordinator.core import (
    detection,
    failure_recovery,
    lifecycle,
    node_release,
    resize_queue,
    step_barrier,
)
from liver_slurm.coordinator.core.io import Action, FromPeer
from liver_slurm.coordinator.core.signals import WorkerGone
from liver_slurm.coordinator.core.state import RunPhase, RunState
from liver_slurm.coordinator.core.status import document
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.engine import why_impossible
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.protocol.messages import Reply, ResizeRequest, WorkerEnded
from liver_slurm.rundir.worker_names import is_guaranteed, place_of


def status(t: Transition, given: FromPeer) -> None:
    """Answer with the status document."""
    t.answer(given.peer, Reply(ok=True, result=document(t.state)))


def cancel(t: Transition, given: FromPeer) -> None:
    """End the run."""
    if not _refused_when_over(t, given):
        t.answer(given.peer, Reply(ok=True))
        lifecycle.end(t, RunPhase.CANCELLED, "cancelled on request")


def checkpoint(t: Transition, given: FromPeer) -> None:
    """Have a checkpoint written at the next step that all can stop at."""
    if _refused_when_over(t, given):
        return
    if t.state.world.live is None:
        t.answer(given.peer, Reply(ok=False, error="the run has not begun to train; there is nothing to save yet"))
        return
    step_barrier.want_checkpoint(t)
    t.answer(given.peer, Reply(ok=True, result={"step": t.state.step}))


def _refused_when_over(t: Transition, given: FromPeer) -> bool:
    if not t.state.over:
        return False
    told = "the run is over: " if t.state.lifecycle.phase.ends_run else "ask again in a moment: "
    t.answer(given.peer, Reply(ok=False, error=told + t.state.reason))
    return True


def worker_ended(t: Transition, given: FromPeer) -> None:
    """Handle the end of a worker's process, as the launcher that started it reports it."""
    state, message = t.state, given.message
    assert isinstance(message, WorkerEnded)
    if not message.again:
        detection.place_is_empty(t, place_of(message.worker))
    known = state.membership.get(message.worker)
    if known is not None and message.pid not in (0, known.pid):
        t.reject("late")  # another process has its name by now
    elif known is not None:
        t.gone(WorkerGone(message.worker, message.reason, how="process exit"))
    elif state.phase is RunPhase.RECOVERING and message.worker in state.world.names:
        if message.worker not in state.damage.lost:
            failure_recovery.give_up_missing(t, [message.worker], message.reason)
    elif state.world.live is None and not state.over and is_guaranteed(message.worker):
        log = f"{state.settings.run_dir}/logs/{place_of(message.worker)}.log"
        failure = f"{message.worker} ended before it registered ({message.reason}); see {log}"
        lifecycle.end(t, RunPhase.FAILED, failure)


def acknowledge(t: Transition, given: FromPeer) -> None:
    """Acknowledge the message."""
    t.answer(given.peer, Reply(ok=True))


# ---- resizes -------------------------------------------------------------------------------------------------------


def resize(t: Transition, given: FromPeer) -> None:
    """Put a resize on the queue, if it can be fulfilled."""
    if _refused_when_over(t, given):
        return
    if t.state.interruption.reason:
        t.answer(given.peer, Reply(ok=False, error=f"no world is begun any more: {t.state.interruption.reason}"))
        return
    message = given.message
    assert isinstance(message, ResizeRequest)
    try:
        goal = judge(t.state, message)
    except BadInput as error:
        t.answer(given.peer, Reply(ok=False, error=str(error)))
        return
    if goal.at_step < 0:
        _make_way(t, goal)
    resize_queue.take(t, goal)
    wanted = str(goal.layout) if goal.layout else ""
    result = {"request": goal.number, "layout": wanted, "workers": goal.workers, "at_step": goal.at_step}
    if goal.give_back:
        node_release.forget_refusals(t)
        leaving, nodes, why_not_more = node_release.go_first(t.state, goal)
        result["give_back"] = {"workers": list(leaving), "nodes": nodes, "reason": why_not_more}
    if goal.at_step < 0:
        result["waits_for_workers"] = _missing(t.state, goal)
    t.answer(given.peer, Reply(ok=True, result=result))


def _make_way(t: Transition, later: ResizeGoal) -> None:
    """Give up requests that wait for workers: they may wait for ever, and must not hold up a later one."""
    for goal in t.state.resizes.goals:
        if goal.at_step < 0 and _missing(t.state, goal):
            resize_queue.give_up(t, goal, f"a later request, {later.number}, takes its place")


def schedule(state: RunState, wishes: Sequence[ResizeRequest]) -> tuple[RunState, list[Action]]:
    """Take over the resizes that a run was started with.

    Raises:
        BadInput: one of them can never be fulfilled.
    """
    t = Transition(state, state.now)
    for wish in wishes:
        resize_queue.take(t, judge(t.state, wish))
    return t.state, t.actions


def judge(state: RunState, message: ResizeRequest) -> ResizeGoal:
    """Turn a message into a request that can be fulfilled.

    Raises:
        BadInput: it never can be, or not with the workers that there are.
    """
    config = state.settings.config
    layout = _layout(message)
    if layout is not None:
        reason = why_impossible(layout, config)
        if reason is not None:
            raise BadInput(reason)
    elif not feasible_layouts(config, message.workers):
        raise BadInput(f"the job file allows no layout for {message.workers} workers; see elastic.layouts")
    size = layout.size if layout is not None else message.workers
    if message.at_step >= 0:
        _check_step(state, message.at_step)
    else:
        _check_workers(state, size)
    goal = ResizeGoal(state.resizes.next_number, layout, size, message.at_step, give_back=message.give_back)
    if goal.give_back:
        node_release.judge(state, goal)
    return goal


def _layout(message: ResizeRequest) -> Layout | None:
    if bool(message.layout) == bool(message.workers):
        raise BadInput("give either a layout or a number of workers")
    if message.workers < 0:
        raise BadInput(f"{message.workers} workers are too few")
    if not message.layout:
        return None
    try:
        return Layout.parse(message.layout)
    except ValueError as error:
        raise BadInput(str(error)) from None


def _check_step(state: RunState, step: int) -> None:
    last = max((goal.at_step for goal in state.resizes.goals), default=-1)
    if step <= state.step:
        raise BadInput(f"step {step} is over: the run has completed {state.step} steps")
    if step >= state.settings.config.train.steps:
        raise BadInput(f"step {step} is no step before the run's end, which is at {state.settings.config.train.steps}")
    if step < last:
        raise BadInput(f"step {step} comes before the last scheduled resize, at step {last}; give them in their order")


def _check_workers(state: RunState, size: int) -> None:
    if state.world.live is None:
        raise BadInput("the run has not begun to train; ask again when `status` says that it is training")
    staying, standbys = state.membership.staying, state.settings.standby_workers
    guaranteed = sum(worker.role == "live" for worker in staying)
    if size <= max(len(staying), guaranteed + standbys):
        return
    inside = sum(worker.name in state.world.names for worker in staying)
    more = f", and {standbys} at most come with standby jobs" if standbys else ""
    raise BadInput(
        f"{size} workers are needed and {len(staying)} are there: "
        f"{inside} in the live world, {len(staying) - inside} standing by{more}"
    )


def _missing(state: RunState, goal: ResizeGoal) -> int:
    """Return how many workers a request still waits for."""
    return max(0, goal.workers - len(state.membership.staying))
