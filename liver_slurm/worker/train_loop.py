"""Training loop of one worker: the shard of the live world, its steps, checkpoints and metrics."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from liver_slurm.base.flops import FlopsMeter
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Samples, StepFlags, StepResult, TrainingShard
from liver_slurm.engine.checkpoint import Checkpointer, Written
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.protocol.messages import CheckpointWritten
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread

_RECENT = 20
"""Number of last steps that step time and the gap between steps are computed from."""


class TrainLoop:
    """Trains the live world's shard; idle while the worker is a standby."""

    def __init__(self, name: str, config: JobConfig, run_dir: RunDir, control: ControlThread) -> None:
        self._name, self._config, self._run_dir, self._control = name, config, run_dir, control
        self._metrics = MetricsWriter(run_dir.metrics)
        self._results: deque[StepResult] = deque(maxlen=_RECENT)
        self._checkpointer: Checkpointer | None = None
        self._due, self._saved_at = False, -1
        self.samples: Samples | None = None
        self.live: TrainingShard | None = None
        self.meter = FlopsMeter()
        self.step = 0
        """Steps completed."""

    @property
    def generation(self) -> int:
        """Generation of the live world; -1: this worker is in none."""
        return self.live.world.membership.generation if self.live is not None else -1

    @property
    def stopped_at(self) -> float:
        """End of the last step's optimizer update, seconds since the epoch; now, before the first; 0.0 in no world."""
        if self.live is None:
            return 0.0
        return self._results[-1].end if self._results else time.time()

    def step_seconds(self) -> float:
        """Mean duration of the last steps; 0.0 before the first."""
        results = list(self._results)
        return (results[-1].end - results[0].start) / len(results) if results else 0.0

    def gap(self) -> float:
        """Median gap in seconds between an optimizer update's end and the next forward pass."""
        results = list(self._results)
        gaps = [later.start - earlier.end for earlier, later in itertools.pairwise(results)]
        return statistics.median(gaps) if gaps else 0.0

    def enter(self, state: TrainingShard, step: int) -> Checkpointer | None:
        """Train in this shard from now on, with ``step`` steps completed; its world is the process's live one already.

        Returns:
            the checkpointer of the world before, which must be waited for before that world is destroyed.
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
        # This process may have opened it as a standby, before the run was restarted with another file of that name.
        self._control.run_soon(self._metrics.reopen)
        return old

    def leave(self) -> Checkpointer | None:
        """Become a standby; returns the checkpointer of the world that is left, as :meth:`enter` does."""
        set_default_group(None)
        old, self._checkpointer, self.live = self._checkpointer, None, None
        return old

    def make_live(self, state: TrainingShard | None) -> None:
        """Make a shard's world the one that this process's torch and engine refer to; None: no world."""
        if state is None:
            set_default_group(None)
        else:
            state.make_live()

    def train(
        self, state: TrainingShard, step: int, stop: bool, before_update: Callable[[float], None] | None = None
    ) -> StepResult:
        """Train one step in ``state``; see :meth:`liver_slurm.engine.api.TrainingShard.train_step`."""
        assert self.samples is not None
        saving = self._checkpointer is not None and self._checkpointer.writing
        return state.train_step(self.samples, step, StepFlags(stop, self._due, saving), before_update)

    def completed(self, result: StepResult) -> None:
        """Record a completed step, and begin a checkpoint if one is due."""
        live = self.live
        assert live is not None
        self._results.append(result)
        self.step = result.step + 1
        if live.world.is_last_stage and live.world.place.tp == 0 and live.world.place.dp == 0:
            metrics = self._as_metrics(live, result)
            self._control.run_soon(lambda: self._metrics.append(metrics))
        every, last = self._config.checkpoint.every, self.step == self._config.train.steps
        self._due = result.flags.save or bool(every and self.step % every == 0 and not last)
        if result.flags.stop:
            self._save()
            self._wait_for_checkpoint()
        elif self._due and not result.flags.saving and not last:
            self._save()

    def _as_metrics(self, live: TrainingShard, result: StepResult) -> StepMetrics:
        rates = self.meter.rates(result.tokens, result.end - result.start, live.world.layout.size)
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
            tokens_per_s=rates.tokens_per_s,
            tflops=rates.tflops,
            mfu=rates.mfu,
        )

    def checkpoint(self) -> None:
        """Begin a checkpoint; all members do, at the same step.

        While another one is still being written, this one is only marked as due and follows it: training does not wait
        for a slow disk, as a worker may have to leave by a deadline.
        """
        if self._saved_at == self.step:
            return  # this step's was due anyway, and is being written
        if self._results and self._results[-1].flags.saving:
            self._due = True
        else:
            self._save()

    def last_checkpoint(self) -> None:
        """Write the checkpoint that is due after the last step, and wait for it."""
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
                self._control.post(
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
