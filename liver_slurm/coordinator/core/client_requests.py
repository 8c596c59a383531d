"""What clients may ask: each request is judged at once and answered with one line if it cannot be granted."""

from __future__ import annotations

from collections.abc import Sequence

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.coordinator.core import membership, node_release, resize_queue
from liver_slurm.coordinator.core.io import Action
from liver_slurm.coordinator.core.lifecycle import end
from liver_slurm.coordinator.core.records import RequestTaken
from liver_slurm.coordinator.core.state import Phase, RunState, Worker
from liver_slurm.coordinator.core.status import document
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.engine import why_impossible
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.protocol.messages import (
    CancelRequest,
    CheckpointRequest,
    FromClient,
    Reply,
    ResizeRequest,
    StatusRequest,
    WorkerEnded,
)
from liver_slurm.rundir.worker_names import is_guaranteed


def handle(turn: Transition, peer: bytes, message: FromClient) -> None:
    """Do what a client asks, and answer it."""
    if isinstance(message, StatusRequest):
        turn.answer(peer, Reply(ok=True, result=document(turn.state)))
        return
    if isinstance(message, WorkerEnded):
        _worker_ended(turn, message)
        turn.answer(peer, Reply(ok=True))
        return
    if turn.state.phase.over:
        told = "the run is over: " if turn.state.phase.ends_run else "ask again in a moment: "
        turn.answer(peer, Reply(ok=False, error=told + turn.state.reason))
        return
    if isinstance(message, CancelRequest):
        turn.answer(peer, Reply(ok=True))
        end(turn, Phase.CANCELLED, 3, "cancelled on request")
    elif isinstance(message, CheckpointRequest):
        _checkpoint(turn, peer)
    else:
        _resize(turn, peer, message)


def _checkpoint(turn: Transition, peer: bytes) -> None:
    if turn.state.live is None:
        turn.answer(peer, Reply(ok=False, error="the run has not begun to train; there is nothing to save yet"))
        return
    turn.update(checkpoint_wanted=True)
    turn.answer(peer, Reply(ok=True, result={"step": turn.state.step}))


def _worker_ended(turn: Transition, message: WorkerEnded) -> None:
    state = turn.state
    if message.worker in state.workers:
        membership.lose(turn, message.worker, message.reason)
    elif state.phase in (Phase.STARTING, Phase.RECOVERING) and is_guaranteed(message.worker):
        log = f"{state.settings.run_dir}/logs/{message.worker}.log"
        end(turn, Phase.FAILED, 1, f"{message.worker} ended before it registered ({message.reason}); see {log}")


def _resize(turn: Transition, peer: bytes, message: ResizeRequest) -> None:
    try:
        goal = judge(turn.state, message)
    except BadInput as error:
        turn.answer(peer, Reply(ok=False, error=str(error)))
        return
    if goal.at_step < 0:
        _make_way(turn, goal)
    take(turn, goal)
    wanted = str(goal.layout) if goal.layout else ""
    result = {"request": goal.number, "layout": wanted, "workers": goal.workers, "at_step": goal.at_step}
    if goal.give_back:
        leaving, nodes, why_not_more = node_release.go_first(turn.state, goal)
        result["give_back"] = {"workers": list(leaving), "nodes": nodes, "reason": why_not_more}
    if goal.at_step < 0:
        result["waits_for_workers"] = _missing(turn.state, goal)
    turn.answer(peer, Reply(ok=True, result=result))


def _make_way(turn: Transition, later: ResizeGoal) -> None:
    """A request that waits for workers, maybe for ever, holds up no later one."""
    for goal in turn.state.requests:
        if goal.at_step < 0 and _missing(turn.state, goal):
            resize_queue.give_up(turn, goal, f"a later request, {later.number}, takes its place")


def take(turn: Transition, goal: ResizeGoal) -> None:
    """Put an accepted request on the list: those for now before those that are scheduled."""
    now = [other for other in turn.state.requests if other.at_step < 0]
    later = [other for other in turn.state.requests if other.at_step >= 0]
    (later if goal.at_step >= 0 else now).append(goal)
    turn.update(requests=(*now, *later), next_request=goal.number + 1)
    if goal.give_back:
        turn.update(refused={})  # whoever asks again wants it tried again
    layout = str(goal.layout) if goal.layout else ""
    turn.journal(
        RequestTaken(
            number=goal.number, layout=layout, workers=goal.workers, at_step=goal.at_step, give_back=goal.give_back
        )
    )
    if turn.state.phase is Phase.STEADY:
        resize_queue.hold(turn)
    turn.stir()


def schedule(state: RunState, wishes: Sequence[ResizeRequest]) -> tuple[RunState, list[Action]]:
    """Take over the resizes that a run was started with.

    Raises:
        BadInput: one of them can never be fulfilled.
    """
    turn = Transition(state, state.now)
    for wish in wishes:
        take(turn, judge(turn.state, wish))
    return turn.state, turn.actions


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
    goal = ResizeGoal(state.next_request, layout, size, message.at_step, give_back=message.give_back)
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
    last = max((goal.at_step for goal in state.requests), default=-1)
    if step <= state.step:
        raise BadInput(f"step {step} is over: the run has completed {state.step} steps")
    if step >= state.settings.config.train.steps:
        raise BadInput(f"step {step} is no step before the run's end, which is at {state.settings.config.train.steps}")
    if step < last:
        raise BadInput(f"step {step} comes before the last scheduled resize, at step {last}; give them in their order")


def _check_workers(state: RunState, size: int) -> None:
    if state.live is None:
        raise BadInput("the run has not begun to train; ask again when `status` says that it is training")
    staying = _staying(state)
    guaranteed = sum(worker.role == "live" for worker in staying)
    if size <= max(len(staying), guaranteed + state.settings.standby_workers):
        return
    inside = sum(worker.name in state.live.members for worker in staying)
    more = (
        f", and {state.settings.standby_workers} at most come with standby jobs"
        if state.settings.standby_workers
        else ""
    )
    raise BadInput(
        f"{size} workers are needed and {len(staying)} are there: "
        f"{inside} in the live world, {len(staying) - inside} standing by{more}"
    )


def _missing(state: RunState, goal: ResizeGoal) -> int:
    """Workers that have still to come for a request."""
    return max(0, goal.workers - len(_staying(state)))


def _staying(state: RunState) -> list[Worker]:
    return [worker for worker in state.workers.values() if worker.departure is None and not worker.dismissed]
