"""Overlapped cutover (mode ``overlap``): the new world runs its first forward and backward pass before the verdict.

Only its first update waits for the commit: until then the old world's state is whole. The digests of what has moved are
compared beside that pass. Layers that had no room beside the old world are the exception: they move while training
stands still, and free the old world's state on the way, so there everything is proven and voted on first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from liver_slurm.base.errors import LiverError
from liver_slurm.engine.api import PendingWeights, TrainingShard
from liver_slurm.protocol.messages import Commit, Handover
from liver_slurm.transfer.cuda_stream import mark
from liver_slurm.transfer.layerwise import LayerwiseStats
from liver_slurm.transfer.transfer import Transfer, TransferStats
from liver_slurm.worker import fault_injection
from liver_slurm.worker.cutover.participant import Outcome, Participant, Pause, Verdict
from liver_slurm.worker.target_world import TargetWorld


class _NotCommitted(Exception):
    """The first step in the new world ends before its update, and with it the new world; carries the verdict."""


class _Held(Exception):
    """The first step in the new world ends before its update: something else is due at the same boundary."""


def cut_over(worker: Participant, target: TargetWorld, transfer: Transfer, step: int, stop: bool) -> Outcome:
    """Finish the transfer, run the new world's first step up to its update, and follow the verdict.

    Args:
        step: steps completed.
        stop: this worker's ``stop`` flag for the first step.

    Raises:
        TransferError: the transfer failed after state of the old world was freed.
        RuntimeError: a peer was lost after the commit.
    """
    pause = worker.pause()
    try:
        fault_injection.reach("stream", worker.name)
        adam_step = transfer.finish()
        late: LayerwiseStats | None = None
        if target.late is not None:
            stats = _prove(worker, target, transfer)
            transfer.release()
            late = worker.move_late(target, target.late)
            adam_step = max(adam_step, late.adam_step)
            worker.prime_mirror(target, step)
        adam_step = fault_injection.updates(worker.name, adam_step)
        weights = target.state.derive_weights(max(0, adam_step)) if target.state is not None else None
        found = partial(worker.handover, target, adam_step, step, mark(worker.device))
        if late is not None:
            worker.vote_yes(target, pause, stats + late.moved, found())
    except (LiverError, RuntimeError) as error:
        worker.vote_no(target, error)
        return _go_back(worker, target, worker.verdict(target))
    if late is None:
        threading.Thread(
            target=_prove_and_vote, args=(worker, target, transfer, pause, found), name="prove", daemon=True
        ).start()
    if target.state is None or weights is None:
        verdict = worker.verdict(target)
        if not isinstance(verdict, Commit):
            return _go_back(worker, target, verdict)
        fault_injection.reach("commit", worker.name)
        return worker.leave(target)
    trains = not worker.loop.validates_at(step)
    return _first_step(_Gate(worker, target, target.state, weights, step, trains), stop)


@dataclass
class _Gate:
    """Holds the new world's first update back until the commit; called by the step between backward pass and update."""

    worker: Participant
    target: TargetWorld
    state: TrainingShard
    weights: PendingWeights
    step: int
    trains: bool
    """A first pass runs; else something comes before the first step, a validation."""
    committed: bool = False

    def __call__(self, started: float) -> None:
        """Wait for the verdict, and enter the new world if it is committed.

        Args:
            started: start of the first forward pass, seconds since the epoch.
        """
        worker, target, step = self.worker, self.target, self.step
        self.weights.wait()
        begun = time.perf_counter()
        verdict = worker.verdict(target)
        if not isinstance(verdict, Commit):
            raise _NotCommitted(verdict)
        self.committed = True
        fault_injection.reach("commit", worker.name)
        worker.enter(target, self.state, step)
        # Asked first: once all have reported that they entered, the coordinator may withdraw the boundary.
        held = self.trains and not worker.directives.begin(verdict)
        worker.post_entered(target, step, started, time.perf_counter() - begun)
        if held:
            raise _Held


def _first_step(gate: _Gate, stop: bool) -> Outcome:
    """Run the new world's first step, whose update waits at the gate for the commit; or only wait there."""
    worker, target, loop = gate.worker, gate.target, gate.worker.loop
    loop.make_live(gate.state)
    fault_injection.reach("first_step", worker.name)
    try:
        if not gate.trains:
            gate(time.time())
            return Outcome.ENTERED
        result = loop.train(gate.state, gate.step, stop, gate)
    except _NotCommitted as end:
        return _go_back(worker, target, end.args[0])
    except _Held:
        return Outcome.ENTERED
    except RuntimeError as error:
        # A peer is gone, or the coordinator gave up and closed the new world's connections.
        if gate.committed:
            raise
        worker.vote_no(target, error)
        verdict = worker.verdict(target)
        if isinstance(verdict, Commit):
            # The new world is whole, though a member of it is lost already: it is entered, and found broken. What is
            # missing of its weights does not matter, as the next world's follow from the masters.
            worker.enter(target, gate.state, gate.step)
            raise
        return _go_back(worker, target, verdict)
    loop.completed(result)
    return Outcome.ENTERED


def _go_back(worker: Participant, target: TargetWorld, verdict: Verdict) -> Outcome:
    """Stay in the old world, after this process may have been in the new one."""
    worker.loop.make_live(worker.loop.live)
    return worker.stay(target, verdict)


def _prove_and_vote(
    worker: Participant, target: TargetWorld, transfer: Transfer, pause: Pause, found: Callable[[], Handover]
) -> None:
    """Compare digests beside the new world's first pass, and vote; the body of a thread."""
    try:
        stats = _prove(worker, target, transfer)
        handover = found()
        worker.prime_mirror(target, handover.step)
    except (LiverError, RuntimeError) as error:
        worker.vote_no(target, error)
        return
    worker.vote_yes(target, pause, stats, handover)


def _prove(worker: Participant, target: TargetWorld, transfer: Transfer) -> TransferStats:
    """Compare digests of what moved while training ran."""
    stats = transfer.prove()
    target.holds(target.held_bytes + stats.staging_peak_bytes + stats.gradient_staging_bytes)
    fault_injection.reach("streamed", worker.name)
    return stats
