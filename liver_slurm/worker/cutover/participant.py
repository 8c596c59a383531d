"""One worker's part in a cutover, whatever moves the state: vote, enter, leave or stay, and free the old world."""

from __future__ import annotations

import enum
import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from liver_slurm.base.errors import TransferError, first_line, traceback_of
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.storage import release
from liver_slurm.protocol.messages import Abort, Commit, Handover, Leaving, Streamed, TransferReport, WorldEntered
from liver_slurm.transfer.cuda_stream import SideStream
from liver_slurm.transfer.layerwise import LayerwiseStats, LayerwiseTransfer
from liver_slurm.transfer.transfer import TransferStats
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.directives import Directives, Leave
from liver_slurm.worker.memory_agreement import forget_peak
from liver_slurm.worker.target_world import TargetWorld
from liver_slurm.worker.train_loop import Left, TrainLoop

log = logging.getLogger(__name__)

_LOST = "the old world's state was being freed for layers that there had been no room for"

Verdict = Commit | Abort | Leave


class Outcome(enum.Enum):
    """Where a worker is after a cutover."""

    ENTERED = enum.auto()
    """In the new world."""
    STAYED = enum.auto()
    """Where it was before: there is no new world."""
    LEFT = enum.auto()
    """In no world: it is a standby again."""
    EXIT = enum.auto()
    """Told to exit."""


@dataclass(frozen=True)
class Pause:
    """Start of the pause, as a vote reports it."""

    paused_at: float
    """End of the last step in the old world, seconds since the epoch; 0.0 on a joiner."""
    gap_seconds: float
    """Usual gap between two steps."""


@dataclass
class Participant:
    """A worker in a cutover: its training loop, its directives, and its connection to the coordinator."""

    name: str
    device: torch.device
    loop: TrainLoop
    directives: Directives
    control: ControlThread
    leaving: bool = False
    """A notice has come: the worker exits as soon as it is in no world."""

    def pause(self) -> Pause:
        """Return the pause that begins now."""
        return Pause(self.loop.stopped_at, self.loop.gap())

    def verdict(self, target: TargetWorld) -> Verdict:
        """Wait for the coordinator's verdict on the target world."""
        return self.directives.verdict(target.membership.generation)

    def wait_for_card(self) -> None:
        """Wait for all that the card has to do: a snapshot may still be copied from what is to be freed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def move_late(self, target: TargetWorld, late: LayerwiseTransfer) -> LayerwiseStats:
        """Move the layers that had no room beside the old world, once all others are proven here."""
        self.wait_for_card()
        stats = late.run()
        target.holds(stats.peak_bytes)
        return stats

    def prime_mirror(self, target: TargetWorld, step: int) -> None:
        """Have what arrived here mirrored before the commit, so that a death right after it loses nothing."""
        if target.mirrors is not None and target.state is not None:  # in mode flat it has no shard yet
            target.mirrors.prime(step)

    # ---- the vote

    def handover(self, target: TargetWorld, updates: int, step: int, counters: Any = None) -> Handover:
        """Return what this worker would go on with, once all has arrived.

        Args:
            updates: that the source world's optimizer has made; -1: not known here.
            step: steps completed.
            counters: event behind which the target world's counters are set; None: they are.

        Raises:
            TransferError: the target world's optimizer counts otherwise.
        """
        with SideStream(self.device).use(after=counters):
            counted = target.state.steps() if target.state is not None else set()
        if updates >= 0 and counted - {updates}:
            raise TransferError(
                f"the optimizer's step is {sorted(counted)} in the new world, and {updates} in the live one"
            )
        return Handover(updates=updates, step=step, data=self.loop.first_sample)

    def vote_yes(self, target: TargetWorld, pause: Pause, moved: TransferStats, found: Handover) -> None:
        """Vote for the commit: everything has arrived and is proven."""
        report = TransferReport(
            seconds=moved.seconds,
            plan_seconds=target.plan_seconds,
            bytes_sent=moved.bytes_sent,
            bytes_early=moved.bytes_early,
            bytes_gradients=moved.bytes_gradients,
            bytes_received=moved.bytes_received,
            bytes_local=moved.bytes_local,
            staging_peak_bytes=moved.staging_peak_bytes,
            gradient_staging_bytes=moved.gradient_staging_bytes,
            memory_peak_bytes=_memory_peak(self.device),
            state_peak_bytes=target.state_peak_bytes,
            late_layers=len(target.late) if target.late is not None else 0,
            image_bytes=target.image.nbytes if target.image is not None else 0,
            digests_checked=moved.digests_checked,
            hook_seconds=moved.exposed_seconds,
            paused_at=pause.paused_at,
            gap_seconds=pause.gap_seconds,
        )
        vote = Streamed(worker=self.name, generation=target.membership.generation, ok=True, report=report, found=found)
        self.control.post(vote)

    def vote_no(self, target: TargetWorld, error: Exception) -> None:
        """Vote against the commit, then close the connections, so that peers which wait for this worker fail now too.

        In this order: the peers' failures are only consequences, and the first reason is the one in the event log.

        Raises:
            TransferError: state of the old world has been freed, so this worker cannot go on.
        """
        log.error("generation %d: %s", target.membership.generation, error, exc_info=traceback_of(error))
        if not target.no_way_back:
            self.control.post(
                Streamed(
                    worker=self.name,
                    generation=target.membership.generation,
                    ok=False,
                    error=first_line(error),
                )
            )
            self.control.drain()
        if target.transfer is not None:
            target.transfer.abort()
        if target.no_way_back:
            raise TransferError(f"{error}; {_LOST}") from error

    # ---- the verdict

    def enter(self, target: TargetWorld, state: TrainingShard, step: int) -> None:
        """Enter the new world with ``step`` steps completed, and free the old one in the background."""
        left = self.loop.enter(state, step, target.mirrors, continues=not target.back)
        self.directives.start_at(step, target.membership.generation)
        fault_injection.reach("retire", self.name)
        retire_in_background(target, left, self.device)

    def post_entered(self, target: TargetWorld, step: int, started: float, gate_seconds: float) -> None:
        """Report that the new world was entered.

        Args:
            started: start of its first forward pass, seconds since the epoch.
            gate_seconds: how long its first update waited for the commit.
        """
        self.control.post(
            WorldEntered(
                worker=self.name,
                generation=target.membership.generation,
                step=step,
                time=started,
                gate_seconds=gate_seconds,
            )
        )

    def leave(self, target: TargetWorld) -> Outcome:
        """Leave the old world: the new one is committed and this worker is not in it."""
        if self.leaving:
            # At once, so that Slurm hands the node over in a second; a checkpoint that is being written is lost.
            self.loop.checkpoints.abandon()
            self.control.post(Leaving(worker=self.name, reason="not in the new world"))
            return Outcome.EXIT
        self.directives.in_no_world()
        fault_injection.reach("retire", self.name)
        retire_in_background(target, self.loop.leave(), self.device)
        return Outcome.LEFT

    def stay(self, target: TargetWorld, verdict: Verdict) -> Outcome:
        """Stay in the old world, whose state is as it was: there is no new world for this worker.

        Raises:
            TransferError: state of the old world has been freed.
        """
        if target.no_way_back and isinstance(verdict, Abort):
            raise TransferError(f"{verdict.reason}; {_LOST}")
        target.discard()
        return Outcome.STAYED if isinstance(verdict, Abort) else Outcome.EXIT


def retire_in_background(target: TargetWorld, left: Left, device: torch.device) -> None:
    """Free the old world off the critical path."""
    threading.Thread(target=_retire, args=(target, left, device), name="retire", daemon=True).start()


def _retire(target: TargetWorld, left: Left, device: torch.device) -> None:
    """Free the old world, once a checkpoint of it that is still being written is complete; what fails is logged."""
    with ExitStack() as last_first:
        last_first.callback(forget_peak, device)
        if left.shard is not None:
            last_first.callback(release, left.shard, target.state)
            last_first.callback(left.shard.world.destroy)
        if left.writer is not None:
            last_first.callback(left.writer.wait)
        if left.mirrors is not None:
            last_first.callback(left.mirrors.close)  # soon, as the new world's wait for it
        last_first.callback(target.close_transfer)


def _memory_peak(device: torch.device) -> int:
    """Return the peak memory of this process in bytes.

    It is what is allocated on its GPU, or resident, with what it has mapped of its peers.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
