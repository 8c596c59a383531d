"""Flat cutover (mode ``flat``): a card never holds two worlds, so the old one goes before the new one is built.

All state moves to host memory and is proven there before the vote: until the commit nothing of the old world is
touched, and there is a way back. After it each member frees the old world, builds its shard and loads it.
"""

from __future__ import annotations

import time

import torch

from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import every_layer
from liver_slurm.engine.storage import Moments, held_bytes, release, touch
from liver_slurm.protocol.messages import Commit
from liver_slurm.transfer.host_image import HostImage
from liver_slurm.transfer.transfer import Transfer
from liver_slurm.worker import fault_injection
from liver_slurm.worker.cutover import blocking
from liver_slurm.worker.cutover.participant import Outcome, Participant
from liver_slurm.worker.target_world import TargetWorld


def cut_over(worker: Participant, target: TargetWorld, transfer: Transfer, step: int) -> Outcome:
    """Move all state to host memory, vote, and follow the verdict; ``step`` steps are completed.

    Raises:
        RuntimeError: a peer was lost after the commit.
    """
    adam_step = blocking.move(worker, target, transfer, step)
    verdict = worker.verdict(target)
    if not isinstance(verdict, Commit):
        return worker.stay(target, verdict)
    fault_injection.reach("commit", worker.name)
    if target.image is None:
        return worker.leave(target)
    _make_room(worker)
    state = _settle(worker, target, target.image)
    try:
        state.derive_weights(adam_step).wait()
    finally:  # also where a peer is lost by now: the new world is entered, and found broken
        worker.loop.make_live(state)
        worker.enter(target, state, step)
    worker.post_entered(target, step, time.time(), 0.0)
    return Outcome.ENTERED


def _make_room(worker: Participant) -> None:
    """Free the old world: nobody reads it any more, and there is no way back."""
    live = worker.loop.live
    if live is not None:
        worker.wait_for_card()
        release(live, None)
        if worker.device.type == "cuda":
            torch.cuda.empty_cache()  # the new world's tensors are of other sizes


def _settle(worker: Participant, target: TargetWorld, image: HostImage) -> TrainingShard:
    """Build this worker's shard, and load what waits for it."""
    fault_injection.reach("settle", worker.name)
    state = target.settle()
    Moments(state, None).allocate(every_layer)
    touch(state, None)
    target.holds(held_bytes(state))
    image.load(state)
    if target.mirrors is not None:
        target.mirrors.attach(state)
    return state
