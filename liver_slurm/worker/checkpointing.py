"""When a worker writes its share of a checkpoint, in whatever world it is, and where a second copy of it goes.

All members of a world begin the same checkpoints at the same steps: what decides is what they have agreed on in a step,
or what the coordinator has ordered for one. Training does not wait for a slow disk, as a worker may have to leave by a
deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import StepFlags, TrainingShard
from liver_slurm.engine.checkpoint import Checkpointer, Written
from liver_slurm.protocol.messages import CheckpointWritten
from liver_slurm.rundir.copies import copies_folder
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import fault_injection
from liver_slurm.worker.checkpoint_copies import CheckpointCopies
from liver_slurm.worker.checkpoint_schedule import Schedule
from liver_slurm.worker.control_thread import ControlThread


class Checkpointing:
    """The checkpoints of one worker; called by the training thread."""

    def __init__(
        self, name: str, config: JobConfig, run_dir: RunDir, control: ControlThread, report: Callable[[int, str], None]
    ) -> None:
        """``report``: told how copies get on, see :class:`CheckpointCopies`."""
        self._name, self._config, self._run_dir, self._control = name, config, run_dir, control
        folder = copies_folder(config, run_dir)
        self._copies = CheckpointCopies(folder, config.checkpoint.keep, report) if folder is not None else None
        self._checkpointer: Checkpointer | None = None
        self._schedule: Schedule | None = None
        self._first = False
        """This worker has rank 0."""
        self._due = self._busy = False
        """One is to be begun when no other is being written; and one was in the last step, somewhere in the world."""
        self._saved_at = -1
        """Steps completed in the one that was begun last in this world; -1: none was."""

    def enter(self, state: TrainingShard) -> Checkpointer | None:
        """Write the checkpoints of this shard's world from now on; returns what is left of the world before.

        That may still be writing, and is to be waited for before its world is destroyed.
        """
        before, config, workers = self._checkpointer, self._config.checkpoint, state.world.layout.size
        self._checkpointer = Checkpointer(
            state,
            self._run_dir.checkpoints,
            config.keep,
            config.asynchronous,
            self._config.train,
            after=before,
            on_write=partial(fault_injection.reach, "save", self._name),
        )
        if self._schedule is None:
            self._schedule = Schedule(config.every is None, workers, time.monotonic())
        self._schedule.workers, self._first = workers, state.world.rank == 0
        self._busy, self._saved_at = False, -1  # joiners have saved nothing, and all members are to do the same
        return before

    def leave(self) -> Checkpointer | None:
        """Write none any more; returns what is left, as :meth:`enter` does."""
        before, self._checkpointer = self._checkpointer, None
        return before

    @property
    def writing(self) -> bool:
        """Whether one is being written here."""
        return self._checkpointer is not None and self._checkpointer.writing

    def asks(self, rank: int) -> bool:
        """Return whether this rank of a world asks all of it for one.

        Rank 0 asks for all where the clock says so, or the last one was not written: its clock counts, and its word.
        """
        return self._due or (self._schedule is not None and rank == 0 and self._schedule.due(time.monotonic()))

    def completed(self, step: int, flags: StepFlags) -> None:
        """Begin one if it is due with ``step`` steps completed, and write it at once if the world stops there.

        Args:
            flags: what its members have said in that step.
        """
        every, last = self._config.checkpoint.every, step == self._config.train.steps
        self._busy = flags.saving
        self._due = flags.save or bool(every and step % every == 0 and not last)
        if flags.stop:
            self.save(step)
            self._wait()
            self.wait_for_copies()
        elif self._due and not flags.saving and not last:
            self.save(step)

    def request(self, step: int) -> None:
        """Begin one; all members do, at the same step. While another one is being written, it follows that."""
        if self._busy and self._saved_at != step:
            self._due = True
        else:
            self.save(step)

    def last(self, step: int) -> None:
        """Write the one that is due after the last step, and wait for it.

        Its copy may take much longer, and nobody but this worker has to wait for that: see :meth:`wait_for_copies`.
        """
        if self._due or self._config.checkpoint.at_end:
            self.save(step)
        self._wait()

    @property
    def copying(self) -> bool:
        """Whether one is being copied to the second place, here."""
        return self._copies is not None and self._copies.under_way

    def wait_for_copies(self) -> None:
        """Wait until none is being copied."""
        if self._copies is not None:
            self._copies.wait()

    def keep(self, step: int) -> None:
        """Let the one of this step stay, however many newer ones there are; -1: none."""
        assert self._checkpointer is not None
        self._checkpointer.best = step

    def abandon(self) -> None:
        """Say that this worker leaves: of one that is being written its share will not come."""
        if self._checkpointer is not None:
            self._checkpointer.abandon()

    def save(self, step: int) -> None:
        """Begin the one of this step, unless it is begun."""
        if self._saved_at == step:
            return
        self._due, self._saved_at = False, step
        assert self._checkpointer is not None
        assert self._schedule is not None
        self._schedule.begun(time.monotonic())
        self._checkpointer.save(step, partial(self._written, self._schedule, self._first))

    def _written(self, schedule: Schedule, first: bool, written: Written) -> None:
        """Report that one is written, or could not be; called in the thread that writes, perhaps in another world."""
        schedule.ended(time.monotonic(), written.error, written.stall_seconds, written.seconds)
        if first and not written.error and self._copies is not None:
            self._copies.copy(written.path)
        if written.error or first:
            self._control.post(
                CheckpointWritten(
                    worker=self._name,
                    step=written.step,
                    ok=not written.error,
                    path=str(written.path),
                    error=written.error or written.left,
                    seconds=written.seconds,
                    stall_seconds=written.stall_seconds,
                )
            )

    def _wait(self) -> None:
        """Wait until nothing is being written."""
        if self._checkpointer is not None:
            self._checkpointer.wait()
