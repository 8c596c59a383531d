"""Training loop of one worker: the shard of the live world, its steps and their metrics."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from liver_slurm.base.errors import RunIsOver
from liver_slurm.base.flops import FlopsMeter
from liver_slurm.config.batch_sizes import samples_before
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Samples, StepFlags, StepResult, TrainingShard
from liver_slurm.engine.checkpoint import Checkpointer
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.rundir.metrics import StepMetrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import fault_injection
from liver_slurm.worker.checkpointing import Checkpointing
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.metrics_file import MetricsFile
from liver_slurm.worker.mirroring import Mirrors
from liver_slurm.worker.validation import Validation

log = logging.getLogger(__name__)

_RECENT = 20
"""Number of last steps that step time and the gap between steps are computed from."""


class Left(NamedTuple):
    """What a worker has of a world that it is in no more; None: nothing."""

    shard: TrainingShard | None
    writer: Checkpointer | None
    """To be waited for before the world is destroyed: it may be writing."""
    mirrors: Mirrors | None


class TrainLoop:
    """Trains the live world's shard; idle while the worker is a standby."""

    def __init__(self, name: str, config: JobConfig, run_dir: RunDir, control: ControlThread) -> None:
        self._name, self._config, self._run_dir, self._control = name, config, run_dir, control
        self._metrics = MetricsFile(run_dir.metrics, partial(self._tell_files, "metrics"))
        self._validations = MetricsFile(run_dir.validations, partial(self._tell_files, "validations"))
        self._results: deque[StepResult] = deque(maxlen=_RECENT)
        self.checkpoints = Checkpointing(name, config, run_dir, control, partial(self._tell_files, "copies"))
        self._telling, self._behind = threading.Lock(), dict[str, tuple[int, str]]()
        self.in_vain = 0
        """Steps in a row, the last one included, that changed nothing."""
        self.files = 0, ""
        """Lines that wait to be written, and why."""
        self._told: deque[StepMetrics] = deque(maxlen=_RECENT)
        """Metrics of the last steps, whoever wrote them down."""
        self.samples: Samples | None = None
        self.first_sample = ""
        """Digest of the run's first sample: all workers must have the same; empty: a loop of the user's own reads."""
        self.validation: Validation | None = None
        """None: the job has none."""
        self.live: TrainingShard | None = None
        self.mirrors: Mirrors | None = None
        """Of the live world; None: it needs none."""
        self.meter = FlopsMeter()
        self.step = 0
        """Steps completed."""
        self._moved = time.monotonic()

    def train_on(self, samples: Samples) -> None:
        """Take the run's samples."""
        self.samples = samples
        if len(samples):
            self.first_sample = hashlib.blake2b(samples.batch(0, 1).tobytes(), digest_size=8).hexdigest()

    @property
    def since_step(self) -> float:
        """Seconds since the last step was completed, or the live world entered."""
        return time.monotonic() - self._moved

    @property
    def computing(self) -> bool:
        """Whether the live shard computes, see :attr:`liver_slurm.engine.api.TrainingShard.computing`."""
        live = self.live
        return live is not None and live.computing

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
        """Return the mean duration of the last steps; 0.0 before the first."""
        results = list(self._results)
        return (results[-1].end - results[0].start) / len(results) if results else 0.0

    def gap(self) -> float:
        """Return the median gap in seconds between an optimizer update's end and the next forward pass."""
        results = list(self._results)
        gaps = [later.start - earlier.end for earlier, later in itertools.pairwise(results)]
        return statistics.median(gaps) if gaps else 0.0

    def enter(self, state: TrainingShard, step: int, mirrors: Mirrors | None, continues: bool = True) -> Left:
        """Train in this shard from now on, with ``step`` steps completed; its world is the process's live one already.

        Args:
            mirrors: of its world.
            continues: another world of this run has trained these steps just now.

        Returns:
            what is left of the world before.
        """
        left = Left(self.live, self.checkpoints.enter(state), self.mirrors)
        self.live, self.step, self.mirrors = state, step, mirrors
        self._moved = time.monotonic()
        self._results.clear()
        if self._writes_metrics(state):
            self._metrics.begin(after=step if continues else -1)
            self._validations.begin(after=-1)
        if self.validation is not None:
            if not continues or self.validation.progress.step > step:
                self.validation.reload()  # steps are trained again
            self.checkpoints.keep(self.validation.keeps)
        return left

    @staticmethod
    def _writes_metrics(state: TrainingShard) -> bool:
        return state.world.is_last_stage and state.world.place.tp == 0 and state.world.replica == 0

    def _tell_files(self, kind: str, waiting: int, error: str) -> None:
        with self._telling:
            self._behind = {**self._behind, kind: (waiting, error)}
            counts, errors = zip(*self._behind.values(), strict=True)
            self.files = sum(counts), "; ".join(filter(None, errors))
        self._control.beat()

    def flush(self, seconds: float) -> None:
        """Wait until all metrics are in their file, and say which are not by then."""
        for kind, file in (("metrics", self._metrics), ("validations", self._validations)):
            missing = file.drain(seconds)
            if missing:
                log.error("%s are lost: %s", kind, missing)
                self._tell_files(kind, 0, f"{kind} are lost: {missing}")

    def leave(self) -> Left:
        """Become a standby; returns what is left, as :meth:`enter` does."""
        set_default_group(None)
        left = Left(self.live, self.checkpoints.leave(), self.mirrors)
        self.live = self.mirrors = None
        return left

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
        fault_injection.reach("step", self._name)
        # In a new world's first step, which may come before the commit, the mirrors are those of the world before.
        unready = state is not self.live or (self.mirrors is not None and not self.mirrors.ready)
        flags = StepFlags(stop, self.checkpoints.asks(state.world.rank), self.checkpoints.writing, unready)
        return state.train_step(self.samples, step, flags, before_update)

    def completed(self, result: StepResult) -> None:
        """Record a completed step, and begin a checkpoint if one is due."""
        live = self.live
        assert live is not None
        self._results.append(result)
        self.step, self._moved = result.step + 1, time.monotonic()
        metrics = self._as_metrics(live, result)
        self._told.append(metrics)
        self._count_skipped(result)
        if self.mirrors is not None and not result.flags.unready:
            self.mirrors.all_ready()
        if self._writes_metrics(live):
            self._metrics.append(metrics)
        self.checkpoints.completed(self.step, result.flags)

    @property
    def at_end(self) -> str:
        """Why training is over; empty: it is not."""
        if self.step >= self._config.train.steps:
            steps = self._config.train.steps
            return f"all {steps} steps are trained" if steps > 1 else "its only step is trained"
        if self.validation is None or not self.validation.gives_up:
            return ""
        best = self.validation.progress.best_step
        return f"the validation loss is not below that of step {best} after {self._config.validation.patience} more"

    def validates_at(self, step: int) -> bool:
        """Return whether a world that begins with ``step`` steps completed validates before it trains.

        All members agree.
        """
        return self.validation is not None and self.validation.falls_on(step)

    def validates(self) -> bool:
        """Return whether there is to be a validation, or the rest of one, before the next step."""
        return self.live is not None and self.validation is not None and self.validation.due(self.generation, self.step)

    def validate(self, interrupts: Callable[[], bool]) -> bool:
        """Validate; see :meth:`liver_slurm.worker.validation.Validation.run`."""
        live, validation = self.live, self.validation
        assert live is not None
        assert validation is not None
        done = validation.run(live, self.step, interrupts)
        self._results.clear()  # the time between two steps is to be theirs
        if done:
            self._write_validation(live)
            self._keep_best(validation)
        return done

    def _keep_best(self, validation: Validation) -> None:
        self.checkpoints.keep(validation.keeps)
        if validation.keeps == self.step:
            self.checkpoints.save(self.step)

    def _write_validation(self, live: TrainingShard) -> None:
        found = self.validation.metrics(self.generation, str(live.world.layout)) if self.validation else None
        if found is not None and self._writes_metrics(live):
            self._validations.append(found)

    def write_missing_metrics(self, last: int) -> None:
        """Add the last steps up to ``last`` to the metrics that are not there: whoever was to do so is lost."""
        self._metrics.begin(after=-1)
        for metrics in self._told:
            if metrics.step <= last:
                self._metrics.append(metrics)

    def _count_skipped(self, result: StepResult) -> None:
        """Count steps that changed nothing; all ranks see the same.

        Raises:
            RunIsOver: there were too many in a row.
        """
        if math.isfinite(result.loss) and not result.skipped:
            self.in_vain = 0
            return
        self.in_vain += 1
        if self.in_vain == 1:
            log.warning("step %d changed nothing: its loss (%g) or gradient is not finite", self.step, result.loss)
            self._control.beat()
        most = self._config.train.most_skipped
        if 0 < most <= self.in_vain:
            raise RunIsOver(
                f"the last {most} steps changed nothing, as their loss or gradient is not finite; look at train.lr and "
                "the data, or set train.most_skipped"
            )

    def _as_metrics(self, live: TrainingShard, result: StepResult) -> StepMetrics:
        rates = self.meter.rates(result.tokens, result.end - result.start, live.world.layout.size)
        return StepMetrics(
            step=self.step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            tokens=result.tokens,
            consumed_samples=samples_before(self._config.train, self.step),
            generation=live.world.membership.generation,
            layout=str(live.world.layout),
            start=result.start,
            end=result.end,
            tokens_per_s=rates.tokens_per_s,
            tflops=rates.tflops,
            mfu=rates.mfu,
            data_s=round(result.data_s, 6),
            mirror_s=round(self.mirrors.seconds, 6) if self.mirrors is not None else None,
        )
