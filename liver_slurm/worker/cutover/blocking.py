"""Blocking cutover (mode ``pause``): training stands still until all state has moved and the verdict is there."""

from __future__ import annotations

import time

from liver_slurm.base.errors import LiverError
from liver_slurm.protocol.messages import Commit
from liver_slurm.transfer.transfer import Transfer
from liver_slurm.worker import fault_injection
from liver_slurm.worker.cutover.participant import Outcome, Participant
from liver_slurm.worker.target_world import TargetWorld


def cut_over(worker: Participant, target: TargetWorld, transfer: Transfer, step: int) -> Outcome:
    """Move all state, vote, wait for the verdict and follow it; ``step`` steps are completed.

    Raises:
        TransferError: the transfer failed after state of the old world was freed.
    """
    move(worker, target, transfer, step)
    verdict = worker.verdict(target)
    if not isinstance(verdict, Commit):
        return worker.stay(target, verdict)
    fault_injection.reach("commit", worker.name)
    if target.state is None:
        return worker.leave(target)
    worker.loop.make_live(target.state)
    worker.enter(target, target.state, step)
    worker.post_entered(target, step, time.time(), 0.0)
    return Outcome.ENTERED


def move(worker: Participant, target: TargetWorld, transfer: Transfer, step: int) -> int:
    """Run the transfer and vote, in modes pause and flat; returns how many updates the old world has made."""
    pause = worker.pause()
    try:
        fault_injection.reach("stream", worker.name)
        adam_step = transfer.finish()
        stats = transfer.prove()
        target.holds(target.held_bytes + stats.staging_peak_bytes)
        if target.late is not None:
            late = worker.move_late(target, target.late)
            stats, adam_step = stats + late.moved, max(adam_step, late.adam_step)
        adam_step = fault_injection.updates(worker.name, adam_step)
        if target.derives and target.state is not None:
            target.state.derive_weights(max(0, adam_step)).wait()
        elif target.state is not None:
            target.state.set_step(max(0, adam_step))
        if target.flat:
            transfer.stop_reading()  # a card keeps memory that is freed while another process has it open
        found = worker.handover(target, adam_step, step)
        fault_injection.reach("streamed", worker.name)
        worker.prime_mirror(target, step)
    except (LiverError, RuntimeError) as error:
        worker.vote_no(target, error)
        return 0
    worker.vote_yes(target, pause, stats, found)
    return max(0, adam_step)
