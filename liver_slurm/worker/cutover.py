"""From the old world to the new one, at the step that all agreed on: stream, prove, vote, and do what the verdict says.

In mode pause training stands until the verdict. In mode overlap the new world runs its first forward and backward pass
meanwhile, and only its first update waits: until then the old world's state is whole. Not where layers had no room
beside the old world: they move while training stands, and free the old world's state on the way.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from dataclasses import dataclass

import torch

from liver_slurm.base.errors import LiverError, TransferError
from liver_slurm.engine.megatron.checkpoint import Checkpointer
from liver_slurm.engine.megatron.gather import Gather
from liver_slurm.engine.megatron.rank_state import RankState
from liver_slurm.engine.megatron.replay import complete
from liver_slurm.engine.megatron.storage import release
from liver_slurm.protocol.messages import Abort, Commit, Leaving, Streamed, WorldEntered
from liver_slurm.transfer.blocking_transfer import BlockingTransfer, BlockingTransferStats
from liver_slurm.transfer.layerwise import LayerwiseStats, LayerwiseTransfer
from liver_slurm.transfer.live_transfer import LiveTransfer, LiveTransferStats
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.directives import Directives, Leave
from liver_slurm.worker.target_world import TargetWorld
from liver_slurm.worker.train_loop import TrainLoop

log = logging.getLogger(__name__)

_LOST = "the old world's state was being freed for layers that stream.memory_limit had left no room for"


class Outcome(enum.Enum):
    """What the worker is after a cutover."""

    ENTERED = enum.auto()
    """In the new world."""
    STAYED = enum.auto()
    """In what it was in before: there is no new world."""
    LEFT = enum.auto()
    """In no world: it waits to be used again."""
    EXIT = enum.auto()
    """It is to end."""


class _NotCommitted(Exception):
    """The first step in the new world ends before its update, and with it the new world."""


class _Held(Exception):
    """The first step in the new world ends before its update: something else is due at the same boundary."""


@dataclass
class _Pause:
    """What the old world's side of a vote says of the pause."""

    paused_at: float
    gap_seconds: float


class Cutover:
    """Takes one worker over; called by the training thread only."""

    def __init__(
        self, name: str, device: torch.device, training: TrainLoop, agenda: Directives, companion: ControlThread
    ) -> None:
        self._name, self._device = name, device
        self._training, self._agenda, self._companion = training, agenda, companion
        self._leaving = False

    def noticed(self) -> None:
        """This worker will go away: once it is in no world it ends at once; from any thread."""
        self._leaving = True

    def run(self, target: TargetWorld, step: int, stop: bool) -> Outcome:
        """Cut over with ``step`` steps completed; ``stop`` as for a step, which mode overlap makes one of."""
        pause = _Pause(self._training.stopped_at, self._training.gap())
        if isinstance(target.transfer, LiveTransfer):
            return self._overlapped(target, target.transfer, step, pause, stop)
        assert target.transfer is not None
        return self._paused(target, target.transfer, step, pause)

    # ---- mode pause

    def _paused(self, target: TargetWorld, transfer: BlockingTransfer, step: int, pause: _Pause) -> Outcome:
        adam_step = self._stream(target, transfer, step, pause)
        verdict = self._agenda.verdict(target.membership.generation)
        if not isinstance(verdict, Commit):
            return self._stay(target, verdict)
        fault_injection.reach("commit", self._name)
        if target.state is None:
            return self._out(target)
        target.state.set_step(adam_step)
        self._training.make_live(target.state)
        self._enter(target, target.state, step)
        self._post_entered(target, step, time.time(), 0.0)
        return Outcome.ENTERED

    def _stream(self, target: TargetWorld, transfer: BlockingTransfer, step: int, pause: _Pause) -> int:
        """Run the transfer and vote; returns Adam's step counter."""
        try:
            fault_injection.reach("stream", self._name)
            counters = self._counters(step)
            stats, agreed = transfer.run(counters)
            target.holds(target.held_bytes + stats.staging_peak_bytes)
            if target.late is not None:
                stats += self._move_late(target, target.late, counters).moved
            fault_injection.reach("streamed", self._name)
        except LiverError as error:
            self._vote_no(target, error)
            return step
        self._vote_yes(target, pause, stats)
        return agreed[0]

    # ---- mode overlap

    def _overlapped(self, target: TargetWorld, overlap: LiveTransfer, step: int, pause: _Pause, stop: bool) -> Outcome:
        generation = target.membership.generation
        try:
            fault_injection.reach("stream", self._name)
            adam_step = overlap.finish()
            late: LayerwiseStats | None = None
            if target.late is not None:
                stats = self._proven(target, overlap)
                overlap.release()
                late = self._move_late(target, target.late, self._counters(step))
                adam_step = late.adam_step
            weights = complete(target.state, adam_step) if target.state is not None else None
        except (LiverError, RuntimeError) as error:
            self._vote_no(target, error)
            return self._without(target, self._agenda.verdict(generation))
        if late is not None:
            self._vote_yes(target, pause, late.moved, stats)
        else:
            threading.Thread(target=self._prove, args=(target, overlap, pause), name="prove", daemon=True).start()
        if target.state is None or weights is None:
            verdict = self._agenda.verdict(generation)
            if not isinstance(verdict, Commit):
                return self._without(target, verdict)
            fault_injection.reach("commit", self._name)
            return self._out(target)
        return self._first_step(target, target.state, weights, step, stop)

    def _first_step(self, target: TargetWorld, state: RankState, weights: Gather, step: int, stop: bool) -> Outcome:
        """The new world's first step, whose update waits for the commit."""
        training, generation = self._training, target.membership.generation
        committed = False

        def gate(started: float) -> None:
            nonlocal committed
            weights.wait()
            begun = time.perf_counter()
            verdict = self._agenda.verdict(generation)
            if not isinstance(verdict, Commit):
                raise _NotCommitted(verdict)
            committed = True
            fault_injection.reach("commit", self._name)
            self._enter(target, state, step)
            # Asked first: once all have said that they entered, the coordinator may withdraw the boundary.
            held = not self._agenda.begin(step)
            self._post_entered(target, step, started, time.perf_counter() - begun)
            if held:
                raise _Held

        training.make_live(state)
        fault_injection.reach("first_step", self._name)
        try:
            result = training.train(state, step, stop, gate)
        except _NotCommitted as end:
            return self._without(target, end.args[0])
        except _Held:
            return Outcome.ENTERED
        except RuntimeError as error:
            # A peer has gone, or the coordinator gave up and closed the new world's connections.
            if committed:
                raise
            self._vote_no(target, error)
            verdict = self._agenda.verdict(generation)
            if isinstance(verdict, Commit):
                raise
            return self._without(target, verdict)
        training.completed(result)
        return Outcome.ENTERED

    def _prove(self, target: TargetWorld, overlap: LiveTransfer, pause: _Pause) -> None:
        """Compare digests beside the new world's first pass, and vote."""
        try:
            stats = self._proven(target, overlap)
        except LiverError as error:
            self._vote_no(target, error)
            return
        self._vote_yes(target, pause, BlockingTransferStats(), stats)

    def _proven(self, target: TargetWorld, overlap: LiveTransfer) -> LiveTransferStats:
        """Compare digests of what moved while training ran."""
        stats = overlap.prove()
        target.holds(target.held_bytes + stats.staging_peak_bytes + stats.gradient_staging_bytes)
        fault_injection.reach("streamed", self._name)
        return stats

    # ---- both

    def _counters(self, step: int) -> list[int] | None:
        """The live world's, for those that join; None on a joiner."""
        live = self._training.live
        return [max(live.steps(), default=step)] if live is not None else None

    def _move_late(self, target: TargetWorld, late: LayerwiseTransfer, counters: list[int] | None) -> LayerwiseStats:
        """Move the layers that had no room; all others are proven here."""
        stats = late.run(counters)
        target.holds(stats.peak_bytes)
        return stats

    def _vote_yes(
        self,
        target: TargetWorld,
        pause: _Pause,
        paused: BlockingTransferStats,
        overlapped: LiveTransferStats | None = None,
    ) -> None:
        """Say that all is proven: what moved in the pause, and what while training ran."""
        early = overlapped or LiveTransferStats()
        self._companion.post(
            Streamed(
                worker=self._name,
                generation=target.membership.generation,
                ok=True,
                seconds=early.seconds + paused.seconds,
                plan_seconds=target.plan_seconds,
                bytes_sent=early.bytes_sent + paused.bytes_sent,
                bytes_early=early.bytes_early,
                bytes_gradients=early.bytes_gradients,
                bytes_received=early.bytes_received + paused.bytes_received,
                bytes_local=early.bytes_local + paused.bytes_local,
                staging_peak_bytes=max(early.staging_peak_bytes, paused.staging_peak_bytes),
                gradient_staging_bytes=early.gradient_staging_bytes,
                memory_peak_bytes=_memory_peak(self._device),
                state_peak_bytes=target.state_peak_bytes,
                late_layers=len(target.late) if target.late is not None else 0,
                digests_checked=early.digests_checked + paused.digests_checked,
                hook_seconds=early.exposed_seconds,
                paused_at=pause.paused_at,
                gap_seconds=pause.gap_seconds,
            )
        )

    def _vote_no(self, target: TargetWorld, error: Exception) -> None:
        """Say that it failed, and close the connections, so that peers which wait for this worker fail now too.

        In this order: what they then say is only a consequence, and the first word is the reason in the event log.

        Raises:
            TransferError: there is no way back, so this worker cannot go on.
        """
        log.error("generation %d: %s", target.membership.generation, error)
        if not target.no_way_back:
            self._companion.post(
                Streamed(
                    worker=self._name,
                    generation=target.membership.generation,
                    ok=False,
                    error=str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
            )
            self._companion.drain()
        if target.transfer is not None:
            target.transfer.abort()
        if target.no_way_back:
            raise TransferError(f"{error}; {_LOST}") from error

    def _without(self, target: TargetWorld, verdict: Commit | Abort | Leave) -> Outcome:
        """There is no new world for this worker, which may have been in it: go back, see :meth:`_stay`."""
        self._training.make_live(self._training.live)
        return self._stay(target, verdict)

    def _stay(self, target: TargetWorld, verdict: Commit | Abort | Leave) -> Outcome:
        """There is no new world for this worker: stay in the old one, whose state is as it was.

        Raises:
            TransferError: there is no way back.
        """
        if target.no_way_back and isinstance(verdict, Abort):
            raise TransferError(f"{verdict.reason}; {_LOST}")
        target.discard()
        return Outcome.STAYED if isinstance(verdict, Abort) else Outcome.EXIT

    def _enter(self, target: TargetWorld, state: RankState, step: int) -> None:
        old = self._training.live
        writer = self._training.enter(state, step)
        self._agenda.start_at(step)
        threading.Thread(target=_retire, args=(target, old, writer), name="retire", daemon=True).start()

    def _out(self, target: TargetWorld) -> Outcome:
        """The new world is committed and this worker is not in it."""
        old = self._training.live
        if self._leaving:
            # At once, so that Slurm hands the node over in a second; a checkpoint that is being written is lost.
            self._companion.post(Leaving(worker=self._name, reason="not in the new world"))
            return Outcome.EXIT
        writer = self._training.leave()
        threading.Thread(target=_retire, args=(target, old, writer), name="retire", daemon=True).start()
        return Outcome.LEFT

    def _post_entered(self, target: TargetWorld, step: int, started: float, gate_seconds: float) -> None:
        self._companion.post(
            WorldEntered(
                worker=self._name,
                generation=target.membership.generation,
                step=step,
                time=started,
                gate_seconds=gate_seconds,
            )
        )


def _retire(target: TargetWorld, old: RankState | None, writer: Checkpointer | None) -> None:
    """Free what the old world had, off the critical path; a checkpoint of it may still be being written."""
    target.close_transfer()
    if writer is not None:
        writer.wait()
    if old is not None:
        old.world.destroy()
        release(old, target.state)


def _memory_peak(device: torch.device) -> int:
    """Bytes that this process has held at most: on its GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
