"""What the training thread has in hand: the live world's state, the steps made in it, its checkpoints and metrics."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.data.samples import Samples
from liver_slurm.engine.megatron.checkpoint import Checkpointer, Written
from liver_slurm.engine.megatron.groups import make_live
from liver_slurm.engine.megatron.rank_state import RankState
from liver_slurm.engine.megatron.step import StepResult, Word, train_step
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.protocol.messages import CheckpointWritten
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread

_RECENT = 20
"""Steps that step time and the gap between steps are taken from."""


class TrainLoop:
    """The live world as this worker trains in it; nothing while it is a standby."""

    def __init__(self, name: str, config: JobConfig, run_dir: RunDir, companion: ControlThread) -> None:
        self._name, self._config, self._run_dir, self._companion = name, config, run_dir, companion
        self._metrics = MetricsWriter(run_dir.metrics)
        self._results: deque[StepResult] = deque(maxlen=_RECENT)
        self._checkpointer: Checkpointer | None = None
        self._due, self._saved_at = False, -1
        self.samples: Samples | None = None
        self.live: RankState | None = None
        self.step = 0
        """Steps completed."""

    @property
    def generation(self) -> int:
        """Of the live world; -1: this worker is in none."""
        return self.live.world.membership.generation if self.live is not None else -1

    @property
    def stopped_at(self) -> float:
        """End of the last step's optimizer update, seconds since the epoch; now, before the first; 0.0 in no world."""
        if self.live is None:
            return 0.0
        return self._results[-1].end if self._results else time.time()

    def step_seconds(self) -> float:
        """Of a usual step here; 0.0 before the first."""
        results = list(self._results)
        return (results[-1].end - results[0].start) / len(results) if results else 0.0

    def gap(self) -> float:
        """Seconds between an optimizer update's end and the next forward pass, usually."""
        results = list(self._results)
        gaps = [later.start - earlier.end for earlier, later in itertools.pairwise(results)]
        return statistics.median(gaps) if gaps else 0.0

    def enter(self, state: RankState, step: int) -> Checkpointer | None:
        """Take over a world that is the process's live one already, with ``step`` steps completed.

        Returns:
            what wrote the checkpoints of the world before, to be waited for before that world is destroyed.
        """
        old, checkpoint = self._checkpointer, self._config.checkpoint
        self.live, self.step = state, step
        self._saved_at = -1  # joiners have saved nothing, and all members are to do the same
        self._checkpointer = Checkpointer(
            state,
            self._run_dir.checkpoints,
            checkpoint.keep,
            checkpoint.asynchronous,
            after=old,
            on_write=partial(fault_injection.reach, "save", self._name),
        )
        self._results.clear()
        # This process may have opened it as a standby, before the run began anew with another file of that name.
        self._companion.run_soon(self._metrics.reopen)
        return old

    def leave(self) -> Checkpointer | None:
        """This worker is in no world any more; returns what :meth:`enter` does."""
        set_default_group(None)
        old, self._checkpointer, self.live = self._checkpointer, None, None
        return old

    def make_live(self, state: RankState | None) -> None:
        """Make a world the one that this process's torch and megatron look at, or none."""
        if state is None:
            set_default_group(None)
        else:
            make_live(state.world, self._config.train.seed)

    def train(
        self, state: RankState, step: int, stop: bool, before_update: Callable[[float], None] | None = None
    ) -> StepResult:
        """Train one step in ``state``; see :func:`liver_slurm.engine.megatron.step.train_step`."""
        assert self.samples is not None
        saving = self._checkpointer is not None and self._checkpointer.writing
        return train_step(state, self.samples, step, Word(stop, self._due, saving), before_update)

    def completed(self, result: StepResult) -> None:
        """A step is made: write it down, and save if it is time."""
        live = self.live
        assert live is not None
        self._results.append(result)
        self.step = result.step + 1
        if live.world.is_last_stage and live.world.place.tp == 0 and live.world.place.dp == 0:
            metrics = self._as_metrics(live, result)
            self._companion.run_soon(lambda: self._metrics.append(metrics))
        every, last = self._config.checkpoint.every, self.step == self._config.train.steps
        self._due = result.word.save or bool(every and self.step % every == 0 and not last)
        if result.word.stop:
            self._save()
            self._wait_for_checkpoint()
        elif self._due and not result.word.saving and not last:
            self._save()

    def _as_metrics(self, live: RankState, result: StepResult) -> StepMetrics:
        return StepMetrics(
            step=self.step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            tokens=result.tokens,
            consumed_samples=self.step * self._config.train.global_batch_size,
            generation=live.world.membership.generation,
            layout=str(live.world.layout),
            start=result.start,
            end=result.end,
        )

    def checkpoint(self) -> None:
        """Begin to write one; all members do, at the same step.

        While another is still being written it is only due, and comes after that one: training does not wait for a slow
        disk, as a worker may have to leave by a deadline.
        """
        if self._saved_at == self.step:
            return  # this step's was due anyway, and is being written
        if self._results and self._results[-1].word.saving:
            self._due = True
        else:
            self._save()

    def last_checkpoint(self) -> None:
        """Training is over: write what is still due, and wait for it."""
        if self._due or self._config.checkpoint.at_end:
            self._save()
        self._wait_for_checkpoint()

    def _save(self) -> None:
        self._due, self._saved_at = False, self.step
        assert self._checkpointer is not None
        assert self.live is not None
        first = self.live.world.rank == 0

        def done(written: Written) -> None:
            if written.error or first:
                self._companion.post(
                    CheckpointWritten(
                        worker=self._name,
                        step=written.step,
                        ok=not written.error,
                        path=str(written.path),
                        error=written.error,
                        seconds=written.seconds,
                        stall_seconds=written.stall_seconds,
                    )
                )

        self._checkpointer.save(self.step, done)

    def _wait_for_checkpoint(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.wait()
