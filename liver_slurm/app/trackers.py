"""Steps, validations and changes of a run, handed on to TensorBoard or Weights & Biases out of the run's files.

Nothing of it is on the training path: it reads what the run has written, now or while it goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.base.jsonl import LineReader
from liver_slurm.config.load import read_job
from liver_slurm.observability.history import Happening, told
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.event_log import is_event
from liver_slurm.rundir.events import ReconfigurationCommitted, from_document
from liver_slurm.rundir.metrics import StepMetrics, steps_of
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info
from liver_slurm.rundir.validation import ValidationMetrics, validations_of

POLL = 1.0
"""Seconds between looks at the files of a run that goes on."""


class Tracker(Protocol):
    """What takes a run's steps and changes in."""

    where: str
    """Where people find them."""

    def scalars(self, values: dict[str, float], step: int, at: float) -> None:
        """Take figures in; ``at``: seconds since the epoch."""

    def text(self, name: str, text: str, step: int, at: float) -> None:
        """Take a text in."""

    def again(self, step: int, at: float) -> None:
        """Forget this step and those after it: they were trained again."""

    def close(self) -> None:
        """Make sure that all is written."""


class Feed:
    """Hands a run's steps and changes on, each once, and those that were trained again as they were trained last."""

    def __init__(self, run_dir: RunDir, tracker: Tracker) -> None:
        self._tracker = tracker
        self._metrics, self._events = LineReader(run_dir.metrics), LineReader(run_dir.events)
        self._validations = LineReader(run_dir.validations)
        self._ends: dict[int, float] = {}
        """When each step that was handed on ended."""
        self._validated: dict[int, float] = {}
        self._last = 0
        self.steps = 0
        """How many were handed on."""
        self.changes = 0

    def read(self) -> None:
        """Hand on what is new."""
        for step in steps_of(self._metrics.read()):
            if self._ends.get(step.step) != step.end:
                self._step(step)
        for validation in validations_of(self._validations.read()):
            if self._validated.get(validation.step) != validation.end:  # the file is read again when it was cut
                self._validation(validation)
        for line in filter(is_event, self._events.read()):
            event = from_document(line)
            if isinstance(event, ReconfigurationCommitted):
                costs = {"exposed_s": event.exposed_s, "pause_s": event.pause_s, "bytes_moved": event.bytes_moved}
                named = {f"reconfiguration/{name}": float(value) for name, value in costs.items()}
                self._tracker.scalars(named, event.cutover_step, event.time)
            if (happening := told(event)) is not None:
                self._happened(happening)

    def _step(self, step: StepMetrics) -> None:
        if step.step <= self._last:
            self._tracker.again(step.step, step.start)
            self._ends = {number: end for number, end in self._ends.items() if number < step.step}
        self._ends[step.step], self._last = step.end, step.step
        self._tracker.scalars(scalars(step), step.step, step.end)
        self.steps += 1

    def _validation(self, one: ValidationMetrics) -> None:
        self._validated[one.step] = one.end
        values = {"loss": one.loss, "perplexity": one.perplexity, "best_loss": one.best_loss}
        self._tracker.scalars({f"validation/{name}": value for name, value in values.items()}, one.step, one.end)

    def _happened(self, happening: Happening) -> None:
        text = f"{happening.what}: {happening.why}" if happening.why else happening.what
        step = happening.step if happening.step is not None else self._last
        self._tracker.text("changes", text, step, happening.time)
        self.changes += 1


def feed(run_dir: RunDir, tracker: Tracker, over: Callable[[], bool]) -> Feed:
    """Hand a run on until ``over()`` holds and all of it was; returns what was handed on."""
    found = Feed(run_dir, tracker)
    try:
        while True:
            last = over()  # asked first: what was written before it held is still read
            found.read()
            if last:
                return found
            time.sleep(POLL)
    finally:
        tracker.close()


def scalars(step: StepMetrics) -> dict[str, float]:
    """Name the figures of a step as trackers show them; what is not known is left out."""
    known = {
        "train/loss": step.loss,
        "train/grad_norm": step.grad_norm,
        "train/lr": step.lr,
        "train/consumed_samples": step.consumed_samples,
        "speed/step_s": step.end - step.start,
        "speed/tokens_per_s": step.tokens_per_s,
        "speed/tflops": step.tflops,
        "speed/mfu": step.mfu,
        "world/workers": Layout.parse(step.layout).size,
        "world/generation": step.generation,
    }
    return {name: float(value) for name, value in known.items() if value is not None}


class TensorBoard:
    """Writes event files of TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """``folder``: is made.

        Raises:
            LiverError: tensorboard is not installed.
        """
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self._events, self._summaries, self._tensors, self._types = event_pb2, summary_pb2, tensor_pb2, types_pb2
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))
        self.where = f"tensorboard --logdir {folder}"

    def scalars(self, values: dict[str, float], step: int, at: float) -> None:
        found = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, at, summary=self._summaries.Summary(value=found))

    def text(self, name: str, text: str, step: int, at: float) -> None:
        plugin = self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        metadata = self._summaries.SummaryMetadata(plugin_data=plugin)
        tensor = self._tensors.TensorProto(dtype=self._types.DT_STRING, string_val=[text.encode()])
        value = self._summaries.Summary.Value(tag=name, metadata=metadata, tensor=tensor)
        self._write(step, at, summary=self._summaries.Summary(value=[value]))

    def again(self, step: int, at: float) -> None:
        self._write(step, at, session_log=self._events.SessionLog(status=self._events.SessionLog.START))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, at: float, **fields: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=at, step=step, **fields))


class WeightsAndBiases:
    """Logs to Weights & Biases. Of steps that were trained again it has both; its charts show the later one."""

    def __init__(self, run_dir: RunDir, project: str, entity: str | None, offline: bool) -> None:
        """Begin a run there.

        Raises:
            LiverError: wandb is not installed, or does not let us in.
        """
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from None
        config = msgspec.to_builtins(read_job(run_dir.job_file))
        del config["notify"]  # it may have secrets
        try:
            self._run = wandb.init(
                project=project,
                entity=entity,
                name=run_dir.path.name,
                group=read_run_info(run_dir).name,
                dir=str(run_dir.path),
                mode="offline" if offline else "online",
                config=config,
                settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
            )
        except wandb.Error as error:
            advice = "log in with `wandb login`, or use --offline"
            raise LiverError(f"wandb: {' '.join(str(error).split())}; {advice}") from None
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")
        self.where = f"wandb sync {self._run.dir.removesuffix('/files')}" if offline else str(self._run.url)

    def scalars(self, values: dict[str, float], step: int, at: float) -> None:
        self._run.log({**values, "train/step": step, "time": at})

    def text(self, name: str, text: str, step: int, at: float) -> None:
        self._run.log({name: text, "train/step": step, "time": at})

    def again(self, step: int, at: float) -> None:
        self._run.log({"trained_again": 1, "train/step": step, "time": at})

    def close(self) -> None:
        self._run.finish()


def tensorboard_folder(run_dir: RunDir, named: str | None) -> Path:
    """Return where event files go: the folder that was named, or the run's own, which is emptied.

    Raises:
        BadInput: the folder that was named has something in it.
    """
    if named is None:
        shutil.rmtree(run_dir.tensorboard, ignore_errors=True)
        return run_dir.tensorboard
    folder = Path(named)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--to: {folder} is there and is not an empty folder; allowed: one that is empty, or is made")
    return folder


def _missing(extra: str, error: ImportError) -> LiverError:
    return LiverError(f"{extra} is not installed ({error}); install it: pip install 'liver-slurm[{extra}]'")
