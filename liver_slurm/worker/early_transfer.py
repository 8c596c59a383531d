"""State that leaves while training runs: from the moment that a target world is built, until it is entered or given up.

Three threads come here. The one that has built a target world offers it; the control thread says from which step on its
state leaves, and when it is given up; the training thread alone touches the hooks on the live world's optimizer, as it
is the one that runs them. What they share is the newest target world on offer, behind a lock, and what is set in a
target world before its transfer is opened.
"""

from __future__ import annotations

import threading

from liver_slurm.transfer.transfer import Transfer
from liver_slurm.worker import fault_injection
from liver_slurm.worker.target_world import TargetWorld
from liver_slurm.worker.train_loop import TrainLoop


class EarlyTransfer:
    """The transfer of one worker that is under way beside training."""

    def __init__(self, name: str, loop: TrainLoop) -> None:
        self._name, self._loop = name, loop
        self._offered: TargetWorld | None = None
        """The newest target world whose state leaves while training runs."""
        self._lock = threading.Lock()
        """Of what is offered, where it is changed."""
        self._watching: Transfer | None = None
        """The transfer that has hooks on the live world's optimizer; touched by the training thread only."""

    # ---- any thread

    def offer(self, target: TargetWorld) -> None:
        """Have the state of a target world leave, once it is known from which step on."""
        with self._lock:
            self._offered = target

    def forget(self, target: TargetWorld) -> None:
        """Offer a target world no more: it is entered, or given up."""
        with self._lock:
            if self._offered is target:
                self._offered = None

    # ---- the control thread

    def confirmed(self, target: TargetWorld, begin: int, cutover: int) -> None:
        """Let state leave from step ``begin`` on, where that is before the cutover at step ``cutover``; -1: it is not.

        This may come when that step has begun already; while training stands still, it is not opened any more.
        """
        overlap = target.overlap
        if begin >= 0 and overlap is not None:
            overlap.start()
            target.leaves_from, target.cutover_step = begin, cutover
            if self._loop.step < cutover:
                self._let_state_leave(target)

    # ---- the training thread

    def watch_updates(self) -> None:
        """Install optimizer hooks for what is offered, and remove those of a transfer that is given up."""
        target = self._offered
        overlap = target.overlap if target is not None and not target.given_up else None
        if overlap is not self._watching:
            self.watch_nothing()
            if overlap is not None:
                overlap.attach()
            self._watching = overlap
        if overlap is not None and target is not None:
            self._let_state_leave(target)

    def watch_nothing(self) -> None:
        """Remove the hooks of the transfer that is watched, if there is one."""
        if self._watching is not None:
            self._watching.detach()
            self._watching = None

    def _let_state_leave(self, target: TargetWorld) -> None:
        """Open the transfer for the step that training is in, if that is late enough; called by either thread."""
        overlap, loop = target.overlap, self._loop
        if loop.live is not None and overlap is not None and 0 <= target.leaves_from <= loop.step:
            fault_injection.reach("overlap", self._name)
            overlap.open(last=loop.step == target.cutover_step - 1)
