"""A run's figures for monitoring: their names, and their values at one moment. Pure.

Names are a contract with dashboards and alerts: add some, and never rename or remove one. Each sample has the label
``run``, the run directory's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from liver_slurm.observability.counters import RunCounters
from liver_slurm.observability.history import RunHistory
from liver_slurm.observability.openmetrics import Family, Kind, Labels
from liver_slurm.observability.status import RunStatus
from liver_slurm.observability.throughput import RECENT, pace
from liver_slurm.parallel.layout import AXES, Layout
from liver_slurm.rundir.metrics import StepMetrics

Value = float | None
Labelled = Sequence[tuple[Labels, float]]


@dataclass(frozen=True)
class Moment:
    """All that the figures of one moment are made of."""

    run: str
    """Name of the run directory."""
    seq_length: int
    """Tokens of a sample."""
    status: RunStatus
    history: RunHistory
    counters: RunCounters
    steps: Sequence[StepMetrics]
    """The newest, in order."""
    trained_samples: int
    """How many this coordinator has seen being trained, those of repeated steps included."""
    notifications: Mapping[str, int]
    """How many were told, by result."""


def figures(moment: Moment) -> list[Family]:
    """Make all families; those that are not known at this moment have no samples."""
    return [*_state(moment), *_training(moment), *_workers(moment), *_changes(moment), *_troubles(moment)]


def families() -> list[Family]:
    """Make all families that there can be, of a run of which nothing is known."""
    status = RunStatus(
        state="", step=0, steps=0, generation=0, layout=None, target=None, workers=[], standbys=[],
        last_reconfiguration=None, reason="",
    )  # fmt: skip
    return figures(Moment("", 0, status, RunHistory(), RunCounters(), (), 0, {}))


def _state(moment: Moment) -> Iterable[Family]:
    status = moment.status
    name = status.name if status.name is not UNSET else ""
    job_id = status.job_id if status.job_id is not UNSET else ""
    make = _Maker(moment.run)
    return (
        make.of("liver_run", "info", "Which run it is: its name and job id.", [({"name": name, "job_id": job_id}, 1)]),
        make.of("liver_run_state", "gauge", "1 for the state that the run is in.", [({"state": status.state}, 1)]),
        make.one("liver_step", "Steps that are completed.", status.step),
        make.one("liver_steps_target", "Steps of the whole run.", status.steps),
        make.one("liver_generation", "Number of the live world; -1: there is none.", status.generation),
        make.one("liver_reconfiguring", "1 while a target world is being prepared.", int(status.target is not None)),
        make.one("liver_coordinator_epoch", "Number of the coordinator process.", _known(status.epoch)),
    )


def _training(moment: Moment) -> Iterable[Family]:
    status, make = moment.status, _Maker(moment.run)
    newest = moment.steps[-1:]
    speed = pace(moment.steps[-RECENT:], status.step, status.steps)
    tokens = moment.seq_length
    seen = ", also in repeated steps, since this coordinator began."
    period = "From one step to the next, in the live world's last steps."

    def last(of: Callable[[StepMetrics], float]) -> Value:
        return of(newest[0]) if newest else None

    return (
        make.one("liver_loss", "Loss of the last step.", last(lambda step: step.loss)),
        make.one("liver_grad_norm", "Gradient norm of the last step.", last(lambda step: step.grad_norm)),
        make.one("liver_learning_rate", "Learning rate of the last step.", last(lambda step: step.lr)),
        make.one("liver_last_step_timestamp_seconds", "When the last step ended.", last(lambda step: step.end)),
        make.one("liver_step_seconds", period, speed.step_seconds),
        make.one("liver_remaining_seconds", "Until the last step, if all goes on as now.", speed.remaining_s),
        make.one("liver_tokens_per_second", "Of the whole world, in its last steps.", _known(status.tokens_per_s)),
        make.one("liver_tflops_per_gpu", "Model TFLOP/s of each rank's card.", _known(status.tflops)),
        make.one("liver_mfu_ratio", "Model FLOPs utilization.", _known(status.mfu)),
        make.one(
            "liver_consumed_samples", "Samples of the steps that count.", last(lambda step: step.consumed_samples)
        ),
        make.one("liver_consumed_tokens", "Their tokens.", last(lambda step: step.consumed_samples * tokens)),
        make.total("liver_samples", f"Samples that were trained on{seen}", moment.trained_samples),
        make.total("liver_tokens", f"Tokens that were trained on{seen}", moment.trained_samples * tokens),
    )


def _workers(moment: Moment) -> Iterable[Family]:
    status, make = moment.status, _Maker(moment.run)
    layout = Layout.parse(status.layout) if status.layout is not None else None
    sizes = [({"dimension": name}, getattr(layout, name)) for name in AXES] if layout else []
    ready = sum(worker.warm is True for worker in status.standbys)
    standbys = [({"ready": "true"}, ready), ({"ready": "false"}, len(status.standbys) - ready)]
    jobs = Counter(job.state for job in status.standby_jobs) if status.standby_jobs is not UNSET else Counter()
    kinds = Counter(notice.kind for notice in moment.history.notices.values())
    queries = status.queries.last_minute if status.queries is not UNSET else None
    return (
        make.one("liver_workers", "Workers of the live world.", len(status.workers)),
        make.of("liver_layout_size", "gauge", "Sizes of the live world, by dimension.", sizes),
        make.of("liver_standbys", "gauge", "Workers in no world, by whether they are ready.", standbys),
        make.of("liver_standby_jobs", "gauge", "Standby jobs, by state.", _by("state", jobs)),
        make.of("liver_notices", "gauge", "Workers that will go away, by kind.", _by("kind", kinds)),
        make.one("liver_slurm_queries_per_minute", "Queries to slurmctld in the last minute.", queries),
    )


def _changes(moment: Moment) -> Iterable[Family]:
    counted, make = moment.counters, _Maker(moment.run)
    changes = [
        ({"cause": cause, "result": result}, count)
        for (cause, result), count in sorted(counted.reconfigurations.items())
    ]
    waited = "Seconds that training waited for reconfigurations."
    return (
        make.of("liver_reconfigurations", "counter", "Reconfigurations that are over, by cause and result.", changes),
        make.total("liver_reconfiguration_exposed_seconds", waited, counted.exposed_s),
        make.total("liver_reconfiguration_pause_seconds", "The part of that between two worlds.", counted.pause_s),
        make.total("liver_reconfiguration_moved_bytes", "Bytes of state that were moved.", counted.bytes_moved),
    )


def _troubles(moment: Moment) -> Iterable[Family]:
    counted, make = moment.counters, _Maker(moment.run)
    checkpoints, told = _by("result", counted.checkpoints), _by("result", moment.notifications)
    stall = "Seconds that training waited for checkpoints."
    return (
        make.of("liver_notices_received", "counter", "Notices, by kind.", _by("kind", counted.notices)),
        make.total("liver_workers_lost", "Workers that went without being told to.", counted.workers_lost),
        make.total("liver_restarts", "Times that the run went on from a checkpoint.", counted.restarts),
        make.total("liver_steps_lost", "Steps that were trained again after that.", counted.steps_lost),
        make.total("liver_coordinator_starts", "Coordinator processes.", counted.coordinator_starts),
        make.of("liver_checkpoints", "counter", "Checkpoints, by result.", checkpoints),
        make.total("liver_checkpoint_stall_seconds", stall, counted.checkpoint_stall_s),
        make.of(
            "liver_notifications", "counter", "Messages of this coordinator to the world outside, by result.", told
        ),
    )


def _by(label: str, counts: Mapping[str, int]) -> Labelled:
    return [({label: name}, count) for name, count in sorted(counts.items())]


def _known(value: object) -> Value:
    return float(value) if isinstance(value, int | float) else None


class _Maker:
    """Makes families whose samples carry the run's name."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}

    def of(self, name: str, kind: Kind, text: str, samples: Labelled) -> Family:
        """Make a family of labelled samples."""
        return Family(name, kind, text, tuple(({**self._run, **labels}, value) for labels, value in samples))

    def one(self, name: str, text: str, value: Value) -> Family:
        """Make a gauge; None: it has no value now."""
        return self.of(name, "gauge", text, [({}, value)] if value is not None else [])

    def total(self, name: str, text: str, value: Value) -> Family:
        """Make a counter without further labels."""
        return self.of(name, "counter", text, [({}, value)] if value is not None else [])
