"""Cutover: from the live world to the target world, at the step that all members have agreed on.

Each worker moves what state is left to move, proves it, votes, and does what the coordinator's verdict says. How state
moves decides when training goes on: :mod:`~liver_slurm.worker.cutover.blocking` stands still until the verdict,
:mod:`~liver_slurm.worker.cutover.overlapped` runs the new world's first forward and backward pass meanwhile, and
:mod:`~liver_slurm.worker.cutover.flat` frees the old world before the new one is built.
"""

from __future__ import annotations

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.cutover import blocking, flat, overlapped
from liver_slurm.worker.cutover.participant import Outcome, Participant, retire_in_background
from liver_slurm.worker.directives import Directives
from liver_slurm.worker.target_world import TargetWorld
from liver_slurm.worker.train_loop import TrainLoop

__all__ = ["Cutover", "Outcome", "retire_in_background"]


class Cutover:
    """Takes one worker through its cutovers; called by the training thread only."""

    def __init__(
        self, name: str, device: torch.device, loop: TrainLoop, directives: Directives, control: ControlThread
    ) -> None:
        self._participant = Participant(name, device, loop, directives, control)

    def noticed(self) -> None:
        """Record that this worker will go away: once it is in no world it exits at once. Callable from any thread."""
        self._participant.leaving = True

    def run(self, target: TargetWorld, step: int, stop: bool) -> Outcome:
        """Cut over with ``step`` steps completed.

        Args:
            stop: this worker's ``stop`` flag for the new world's first step, which mode overlap makes part of this.

        Raises:
            TransferError: the transfer failed after state of the old world was freed; the worker cannot go on.
            RuntimeError: a peer was lost after the commit.
        """
        transfer = target.transfer
        assert transfer is not None
        step = fault_injection.position(self._participant.name, step)
        if target.flat:
            return flat.cut_over(self._participant, target, transfer, step)
        if transfer.beside_training:
            return overlapped.cut_over(self._participant, target, transfer, step, stop)
        return blocking.cut_over(self._participant, target, transfer, step)

    def refuse(self, target: TargetWorld, error: TransferError) -> Outcome:
        """Vote against the commit before anything has moved, and stay."""
        self._participant.vote_no(target, error)
        return self._participant.stay(target, self._participant.verdict(target))
