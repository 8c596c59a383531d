"""What things take in a simulated run: seconds of a step by layout, of changes, checkpoints and restarts. Pure.

Each figure has a note that says where it is from. A layout whose step was not measured takes that of the measured one
nearest in size, times the ratio of the two by :mod:`liver_slurm.policy.cost_model`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.base.flops import token_flops
from liver_slurm.config.layouts import feasible_layouts, live_workers
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import head_width, idle_expert_weights
from liver_slurm.config.units import most_workers
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.cost_model import estimate, layer_weights

GPU_TFLOPS, GPU_MFU = 989.0, 0.40
CPU_TFLOPS = 0.02
"""Of a worker on a few CPU cores, utilization in it."""
STEP = "step_s"


@dataclass(frozen=True)
class Costs:
    """Durations in seconds; :data:`MEANINGS` says what each is."""

    step_s: Mapping[str, float]
    join_s: float = 60.0
    prepare_s: float = 30.0
    stream_s: float = 5.0
    exposed_pause_s: float = 5.0
    exposed_overlap_s: float = 1.0
    detect_s: float = 1.0
    recover_s: float = 4.0
    restart_s: float = 150.0
    load_s: float = 60.0
    save_s: float = 30.0
    stall_s: float = 2.0
    save_every_s: float = 1800.0
    notes: Mapping[str, str] = field(default_factory=dict)
    """Where each figure is from, by its name."""

    def figures(self) -> Iterator[tuple[str, float, str, str]]:
        """Yield name, seconds, meaning and source of each figure; of steps one for each layout."""
        for layout, seconds in self.step_s.items():
            yield f"{STEP} {layout}", seconds, "a step of it", self.note(STEP)
        for name, meaning in MEANINGS.items():
            yield name, getattr(self, name), meaning, self.note(name)

    def note(self, name: str) -> str:
        """Say where a figure is from."""
        return self.notes.get(name) or ASSUMED.get(name, "assumed")


ASSUMED = {
    "join_s": "assumed: a minute to start processes, import, build the model and warm up",
    "prepare_s": "assumed: LiveR reports under 60 s",
    "stream_s": "assumed: LiveR reports 2 to 4 s",
    "exposed_pause_s": "assumed: LiveR reports 2 to 6 s",
    "exposed_overlap_s": "assumed: a fifth of mode pause",
    "detect_s": "assumed",
    "recover_s": "assumed",
    "restart_s": "assumed: LiveR reports about 150 s for Megatron's checkpoints, up to 30 billion parameters",
    "load_s": "assumed",
    "save_s": "assumed",
    "stall_s": "assumed",
    "save_every_s": "assumed",
}
_HINT = "write one with --save-costs, and change what is different on your cluster"


MEANINGS = {
    "join_s": "from a standby job's start until its workers can join",
    "prepare_s": "to prepare a target world, while training goes on",
    "stream_s": "for the state to cross the wire",
    "exposed_pause_s": "that a change costs training in mode pause",
    "exposed_overlap_s": "that a change costs training in mode overlap",
    "detect_s": "from a sudden death until a collective fails at a survivor",
    "recover_s": "to prepare the world after a broken one, while survivors stand",
    "restart_s": "from a job's last step to the first one after a restart from its checkpoint",
    "load_s": "to go back to a checkpoint without a restart",
    "save_s": "until a checkpoint is written; training stops so long for one before a restart",
    "stall_s": "that a checkpoint on the way stops training for, as it is written in the background",
    "save_every_s": "between two of our checkpoints",
}
"""Of all figures but those of steps."""


class StepTimes:
    """Seconds of a step in any layout of one job."""

    def __init__(self, config: JobConfig, step_s: Mapping[str, float]) -> None:
        self._config = config
        self._known = {Layout.parse(text): seconds for text, seconds in step_s.items()}
        self._found: dict[Layout, float] = dict(self._known)

    def __call__(self, layout: Layout) -> float:
        """Return the seconds of a step in ``layout``."""
        if layout not in self._found:
            nearest = min(self._known, key=lambda one: (abs(math.log(one.size / layout.size)), one))
            ratio = estimate(layout, self._config) / estimate(nearest, self._config)
            self._found[layout] = self._known[nearest] * ratio
        return self._found[layout]


def count_parameters(config: JobConfig) -> int:
    """Count the model's parameters, norms and biases left out."""
    model = config.model
    hidden, layers = model.hidden_size or 1024, model.num_layers or 1
    return int(layers * layer_weights(config, hidden) + (model.vocab_size or 256) * hidden)


def steps_at(config: JobConfig, tflops: float) -> tuple[Layout, float]:
    """Return the largest layout that the job may have, and what a step of it takes at so many TFLOP/s a worker.

    Raises:
        BadInput: the job may have no layout.
    """
    most = live_workers(config.live) + most_workers(config.standby)
    layouts = feasible_layouts(config, most)
    if not layouts:
        raise BadInput(f"elastic.layouts: there is none for the {most} workers that this job may have; add one")
    layout = min(layouts, key=lambda one: (abs(one.size - most), estimate(one, config)))
    model, train = config.model, config.train
    width = head_width(model) * model.num_attention_heads or model.hidden_size or 1024
    flops = token_flops(
        count_parameters(config) - idle_expert_weights(model), model.num_layers or 1, width, train.seq_length
    )
    return layout, flops * train.global_batch_size * train.seq_length / (tflops * 1e12 * layout.size)


def assumed(config: JobConfig) -> Costs:
    """Return costs of which none was measured: steps by the model's arithmetic, the rest as others report it."""
    on_gpus = any(component.gpus_per_task for component in config.live.component)
    peak = config.train.peak_tflops or GPU_TFLOPS
    layout, seconds = steps_at(config, peak * GPU_MFU if on_gpus else CPU_TFLOPS)
    what = f"at {GPU_MFU:.0%} of {peak:g} TFLOP/s" if on_gpus else f"at {CPU_TFLOPS:g} TFLOP/s"
    note = f"assumed: the model's arithmetic {what} a worker in {layout}, other layouts by the cost model"
    return Costs(step_s={str(layout): seconds}, notes={STEP: note})


def to_document(costs: Costs) -> dict[str, Any]:
    """Make the document of a file of costs."""
    names = (STEP, *MEANINGS)
    return {
        **{name: dict(costs.step_s) if name == STEP else getattr(costs, name) for name in names},
        "notes": {name: costs.note(name) for name in names},
    }


def read_document(path: Path) -> Any:
    """Read a file of costs, or one that a benchmark has written.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"--costs {path}: cannot be read as JSON: {error}; {_HINT}") from error


def read_costs(path: Path, base: Costs) -> Costs:
    """Read a file of costs; what it leaves out is as in ``base``.

    Raises:
        BadInput: the file cannot be read, or a figure in it cannot be.
    """
    document = read_document(path)
    if not isinstance(document, dict):
        raise BadInput(f"--costs {path}: it is no JSON object; {_HINT}")
    known = {one.name for one in fields(Costs)}
    if strange := sorted(set(document) - known):
        raise BadInput(f"--costs {path}: there is no figure {strange[0]!r}; known: {', '.join(sorted(known))}")
    said = document.pop("notes", {})
    if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
        raise BadInput(f"--costs {path}: notes is no object of texts")
    for name, value in document.items():
        _check(path, name, value)
    given = dict.fromkeys(document, f"from {path.name}")
    notes = {**base.notes, **given, **{name: str(text) for name, text in said.items() if name in document}}
    return replace(base, **document, notes=notes)


def _check(path: Path, name: str, value: Any) -> None:
    if name != STEP:
        if not _is_seconds(value) or (name == "save_every_s" and value <= 0):
            raise BadInput(f"--costs {path}: {name} is {value!r}; write a number of seconds")
        return
    if not isinstance(value, dict) or not value:
        raise BadInput(f'--costs {path}: {STEP} is {value!r}; write {{"tp2pp1dp2": SECONDS, …}}')
    for layout, seconds in value.items():
        try:
            Layout.parse(layout)
        except ValueError as error:
            raise BadInput(f"--costs {path}: {STEP}: {error}") from None
        if not _is_seconds(seconds) or seconds <= 0:
            raise BadInput(f"--costs {path}: {STEP} of {layout} is {seconds!r}; write a number of seconds")


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
