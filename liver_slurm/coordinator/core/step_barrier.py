"""Step barrier: all members of the live world agree on a step to stop at, without a training collective.

A barrier is proposed ahead of where training is now, so that the proposal arrives in time; one member that can no
longer stop there makes it be proposed again, further ahead, under the same number. What is proposed or withdrawn is
journaled, so that a coordinator that takes over can release members that wait.

No barrier outlives the world whose members vote on it: what that world does not reach is asked of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from liver_slurm.base.frozen import replace
from liver_slurm.base.tally import Tally
from liver_slurm.coordinator.core.barriers import StepBarrier, StepBarriers
from liver_slurm.coordinator.core.io import Tick
from liver_slurm.coordinator.core.records import BoundaryClosed, BoundaryConfirmed, BoundaryProposed, CheckpointWanted
from liver_slurm.coordinator.core.signals import BarrierMoved, Registered, RunEnding
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.protocol.messages import (
    BoundaryVote,
    CheckpointWritten,
    ConfirmBoundary,
    ProposeBoundary,
    WithdrawBoundary,
)
from liver_slurm.rundir import events

REACTION = 0.15
"""Seconds that a proposal may take until every member has seen it; a generous figure for a network and a busy node."""

Slot = Literal["cutover", "checkpoint"]

_write = Writer(StepBarriers, __name__)


def _put(t: Transition, barrier: StepBarrier) -> None:
    barriers = t.state.barriers
    cutover = barrier.purpose == "cutover"
    _write(t, replace(barriers, cutover=barrier) if cutover else replace(barriers, checkpoint=barrier))


# ---- proposals and votes -------------------------------------------------------------------------------------------


def next_step(t: Transition, at_least: int = 0) -> int:
    """Return the nearest step that every member of the live world can probably still stop at.

    While training stands for a validation, that is the step at which it stands: a validation can be interrupted.
    """
    step, lead = t.state.step, 1
    if t.state.validating is not None:
        return max(step, at_least)
    for worker in t.state.members:
        if worker.step_seconds > 0:
            # Heartbeats are old news: count the steps that were made since.
            step = max(step, math.ceil(worker.step + (t.now - worker.step_at) / worker.step_seconds))
            lead = max(lead, math.ceil(REACTION / worker.step_seconds))
    return max(step + lead, at_least)


def propose(t: Transition, slot: Slot, step: int, *, generation: int = -1, request: int = -1) -> None:
    """Ask the live world's members to stop before beginning ``step`` + 1 steps."""
    number = t.state.barriers.next_number
    t.journal(BoundaryProposed(boundary=number, step=step, purpose=slot, generation=generation, request=request))
    barrier = _find(t, number)
    assert barrier is not None
    tell_proposed(t, sorted(barrier.voters), barrier)


def vote(t: Transition, message: BoundaryVote) -> None:
    """Handle one member's vote on a proposal."""
    barrier = _find(t, message.boundary)
    if barrier is None or barrier.confirmed or message.step != barrier.step:
        return t.reject("late")
    if message.worker not in barrier.voters:
        return t.reject("impossible")
    if not message.accepted:
        earliest = max(t.state.barriers.not_before, message.current_step + 1)
        _write(t, replace(t.state.barriers, not_before=earliest))
        # Twice the usual lead: the usual one was too short just now.
        ahead = next_step(t, at_least=message.current_step + 1)
        step = ahead + max(1, ahead - max(t.state.step, message.current_step))
        barrier = replace(barrier, step=step, accepted=Tally(), reached=0.0)
    elif message.worker in barrier.accepted:
        return t.reject("duplicate")
    else:
        barrier = replace(barrier, accepted=barrier.accepted.plus(message.worker, None))
    _put(t, barrier)
    if barrier.purpose == "checkpoint" and _gives_way(t, barrier):
        return None
    if not message.accepted:
        tell_proposed(t, sorted(barrier.voters), barrier)
    if barrier.purpose == "cutover":
        t.signal(BarrierMoved())
    elif barrier.agreed:
        _confirm(t, barrier, sorted(barrier.voters), barrier.generation)
    return None


def _gives_way(t: Transition, checkpoint: StepBarrier) -> bool:
    """Take a checkpoint's barrier back if something else comes first; returns whether it does."""
    cutover = t.state.barriers.cutover
    if checkpoint.step > t.state.settings.config.train.steps:
        withdraw(t, "checkpoint")  # the run's end comes first, and may write one of its own
        want_checkpoint(t, wanted=False)
    elif cutover is not None and checkpoint.step >= cutover.step:
        withdraw(t, "checkpoint")  # as :func:`propose_checkpoint` would not propose it now
    else:
        return False
    return True


def confirm_cutover(t: Transition, receivers: Sequence[str], generation: int, begin: int) -> None:
    """Make the cutover's barrier final: all have accepted it.

    Args:
        t: the transition.
        receivers: old members and new.
        generation: of the target world.
        begin: the step from which on state streams; -1: at the cutover.
    """
    held = t.state.barriers.cutover
    assert held is not None
    _confirm(t, held, receivers, generation, begin)


def _confirm(t: Transition, barrier: StepBarrier, receivers: Sequence[str], generation: int, begin: int = -1) -> None:
    number, purpose = barrier.number, barrier.purpose
    t.journal(BoundaryConfirmed(boundary=number, step=barrier.step, purpose=purpose, generation=generation))
    tell_final(t, receivers, replace(barrier, generation=generation), begin)


def tell_final(t: Transition, receivers: Sequence[str], barrier: StepBarrier, begin: int = -1) -> None:
    """Tell workers, perhaps once more, that a barrier is final."""
    message = ConfirmBoundary(
        epoch=t.state.settings.epoch,
        boundary=barrier.number,
        step=barrier.step,
        purpose=barrier.purpose,
        generation=barrier.generation,
        begin=begin,
    )
    t.send(receivers, message)


def withdraw(t: Transition, slot: Slot) -> None:
    """Take back what is proposed or confirmed, if anything; members that wait there train on."""
    barriers = t.state.barriers
    barrier = barriers.cutover if slot == "cutover" else barriers.checkpoint
    if barrier is None:
        return
    t.journal(BoundaryClosed(boundary=barrier.number))
    tell_withdrawn(t, sorted(barrier.voters), barrier.number)


def tell_withdrawn(t: Transition, receivers: Sequence[str], number: int) -> None:
    """Tell workers, perhaps once more, that they are not to stop at a barrier."""
    t.send(receivers, WithdrawBoundary(epoch=t.state.settings.epoch, boundary=number))


def forget(t: Transition, old: StepBarriers) -> None:
    """Have the next world write the checkpoint that the live one would have, as that is broken.

    One that is agreed on is over once it is written or has failed: before, a share of it may be with the dead.

    Args:
        t: the transition, in which the record of it is written.
        old: the barriers before it.
    """
    agreed = old.agreed_checkpoint
    if old.checkpoint is not None or (agreed is not None and agreed.step > max(old.saved_step, old.failed_step)):
        want_checkpoint(t)


def end_here(t: Transition, step: int, receivers: Sequence[str], generation: int) -> None:
    """Make a step final at which the survivors of a broken world stand already."""
    number = t.state.barriers.next_number
    t.journal(BoundaryProposed(boundary=number, step=step, purpose="cutover", generation=generation))
    confirm_cutover(t, receivers, generation, begin=-1)


def serve(t: Transition, request: int) -> None:
    """Let the cutover's barrier hold training for another request at the same step."""
    held = t.state.barriers.cutover
    assert held is not None
    _put(t, replace(held, request=request, reached=0.0))


def hold_again(t: Transition) -> None:
    """Propose the cutover's step once more, under another number: it is over for those that were to stop there for an
    attempt, and the request that it was scheduled for goes on to hold training."""
    held = t.state.barriers.cutover
    assert held is not None
    propose(t, "cutover", held.step, request=held.request)
    t.journal(BoundaryClosed(boundary=held.number))
    tell_withdrawn(t, sorted(held.voters), held.number)


def reached(t: Transition) -> None:
    """Note that training stands at the cutover's barrier from now on."""
    held = t.state.barriers.cutover
    assert held is not None
    _put(t, replace(held, reached=t.now))


def _find(t: Transition, number: int) -> StepBarrier | None:
    for barrier in (t.state.barriers.cutover, t.state.barriers.checkpoint):
        if barrier is not None and barrier.number == number:
            return barrier
    return None


def tell_proposed(t: Transition, receivers: Sequence[str], barrier: StepBarrier) -> None:
    """Ask members, perhaps once more, to stop at a barrier; a vote counts once."""
    message = ProposeBoundary(
        epoch=t.state.settings.epoch,
        boundary=barrier.number,
        step=barrier.step,
        purpose=barrier.purpose,
        generation=barrier.generation,
    )
    t.send(receivers, message)


# ---- members that a coordinator takes over --------------------------------------------------------------------------


def repeat(t: Transition, workers: Sequence[str]) -> None:
    """Send the cutover's proposal to voters that may have missed it; their votes count once."""
    held = t.state.barriers.cutover
    if held is not None and not held.confirmed:
        tell_proposed(t, [name for name in workers if name in held.voters], held)


def tell_left_open(t: Transition, news: Registered) -> None:
    """Tell a worker to forget the barriers that the last coordinator left open."""
    for number in t.state.barriers.left_open if news.first else ():
        tell_withdrawn(t, [news.name], number)


def run_ending(t: Transition, _: RunEnding) -> None:
    """Forget all barriers: the members are told to leave."""
    _write(t, replace(t.state.barriers, cutover=None, checkpoint=None, agreed_checkpoint=None))


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def want_checkpoint(t: Transition, *, wanted: bool = True) -> None:
    """Note that a checkpoint is wanted, or no longer; :func:`propose_checkpoint` sees to it."""
    if wanted != t.state.barriers.checkpoint_wanted:
        t.journal(CheckpointWanted(wanted=wanted))


def propose_checkpoint(t: Transition) -> None:
    """Propose a wanted checkpoint's step, unless training is about to stop for a resize anyway.

    One that is agreed on and still ahead is as good. While a member may not have come to the last one, there is no
    other: it is told of one at a time.
    """
    barriers, agreed = t.state.barriers, t.state.barriers.agreed_checkpoint
    if not barriers.checkpoint_wanted or barriers.checkpoint is not None:
        return
    at = next_step(t, at_least=barriers.not_before)
    if agreed is not None and any(worker.step <= agreed.step for worker in t.state.members):
        if agreed.step > t.state.step:
            want_checkpoint(t, wanted=False)
    elif at > t.state.settings.config.train.steps:
        want_checkpoint(t, wanted=False)
    elif barriers.cutover is None or at < barriers.cutover.step:
        propose(t, "checkpoint", at, generation=t.state.generation)


def after_checkpoints(barriers: StepBarriers) -> int:
    """Return the first step beyond those at which the live world's members are to write a checkpoint; 0: none."""
    checkpoints = (barriers.checkpoint, barriers.agreed_checkpoint)
    return max((barrier.step + 1 for barrier in checkpoints if barrier is not None), default=0)


def displace_checkpoints(t: Transition, old: StepBarriers, step: int) -> None:
    """Have the new world write the checkpoints that the old one has not come to by ``step``, where it ended.

    Only some of the new world's members have heard of them, and a voter may not be in it: nobody must stop there. The
    commit record, which comes first, has closed them; a worker that misses the word forgets them with the commit.

    Args:
        t: the transition, in which the commit record is written.
        old: the barriers before it.
        step: steps completed at the cutover.
    """
    for barrier in (old.agreed_checkpoint, old.checkpoint):
        if barrier is not None and (barrier.step > step or not barrier.confirmed):
            tell_withdrawn(t, sorted(barrier.voters), barrier.number)
            want_checkpoint(t)


def watch_checkpoint(t: Transition, _: Tick) -> None:
    """Propose a checkpoint's barrier again if training has stood there too long: a proposal or a vote was lost."""
    barrier = t.state.barriers.checkpoint
    if barrier is None or t.state.step < barrier.step:
        return
    if not barrier.reached:
        _put(t, replace(barrier, reached=t.now))
    elif t.now > barrier.reached + t.state.settings.config.job.lost_after:
        withdraw(t, "checkpoint")  # it stays wanted, and is proposed again when it can be


def checkpoint_written(t: Transition, message: CheckpointWritten) -> None:
    """Handle a checkpoint that is written, or has failed."""
    step, seconds, stall_s = message.step, message.seconds, message.stall_seconds
    if not message.ok:
        t.emit(events.CheckpointFailed(step=step, seconds=seconds, stall_s=stall_s, error=message.error))
        # What rank 0 says is the reason; what others say may come of that.
        if step != t.state.barriers.failed_step or message.worker in t.state.world.members[:1]:
            _write(t, replace(t.state.barriers, save_error=message.error, failed_step=step))
    else:
        t.emit(events.CheckpointWritten(step=step, seconds=seconds, stall_s=stall_s, path=message.path))
        if message.error:
            t.emit(events.CheckpointsLeft(error=message.error))
        saved = replace(t.state.barriers, saved=True, saved_step=step, failed_step=-1)
        _write(t, replace(saved, save_seconds=seconds, save_error=""))
