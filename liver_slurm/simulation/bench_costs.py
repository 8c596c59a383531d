"""Costs from what ``liver-slurm bench`` has measured: documents of ``bench … --json`` and of ``make bench-gpu``.

Of the models in a document the one nearest in size to the job's counts, and of its transitions the median. A change
costs what the benchmark calls seconds lost. Steps are those of ``bench train``: the arithmetic that a worker gets done,
applied to the job's model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig
from liver_slurm.simulation.costs import STEP, Costs, count_parameters, steps_at

Case = Mapping[str, Any]


@dataclass(frozen=True)
class _Figure:
    """What one figure of costs is, in the cases of one benchmark."""

    name: str
    values: Sequence[float]
    what: str


def is_bench(document: Any) -> bool:
    """Return whether a document is one that a benchmark has made."""
    return isinstance(document, dict) and isinstance(document.get("bench"), str)


def from_bench(document: Mapping[str, Any], name: str, config: JobConfig, base: Costs) -> Costs:
    """Return ``base`` with what a benchmark has measured in its place.

    Args:
        document: the benchmark's.
        name: of its file, for notes and messages.
        config: the job that is simulated.
        base: costs that stay where the benchmark has nothing to say.

    Raises:
        BadInput: there is no figure in it, or it is not as a benchmark writes it.
    """
    costs, found = base, 0
    for part in _parts(document):
        try:
            measured = list(_measured(part, config, costs))
            steps = _steps(part, config)
            where = _where(part) if measured or steps else ""
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"--costs {name}: bench {part.get('bench')}: {type(error).__name__}: {error}; measure it again"
            ) from error
        for model, figure in measured:
            many = f"median of {len(figure.values)}" if len(figure.values) > 1 else "measured once"
            note = f"from {name}, bench {part['bench']} of {model} on {where}: {figure.what}, {many}"
            value = {figure.name: max(0.0, statistics.median(figure.values))}
            costs = replace(costs, **value, notes={**costs.notes, figure.name: note})  # type: ignore[arg-type]
            found += 1
        if steps is not None:
            step_s, note = steps
            note = f"from {name}, bench train on {where}: {note}"
            costs = replace(costs, step_s=step_s, notes={**costs.notes, STEP: note})
            found += 1
    if not found:
        raise BadInput(
            f"--costs {name}: no figure of bench train, reconfigure or recovery is in it; measure one of them"
        )
    return costs


def _parts(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the benchmarks of a document: ``make bench-gpu`` writes several into one, those that failed among them."""
    if document["bench"] != "gpu":
        yield document
        return
    parts = [part for part in document.get("parts", {}).values() if is_bench(part)]
    changes = [part for part in parts if part["bench"] == "reconfigure"]
    yield from (part for part in parts if part["bench"] != "reconfigure")
    if changes:  # a part for each pair of layouts
        yield {**changes[0], "cases": [case for part in changes for case in part["cases"]]}


def _where(part: Mapping[str, Any]) -> str:
    machine = part["machine"]
    return f"{machine['cores']} cores" if machine["device"] == "cpu" else str(machine["device"])


def _nearest(cases: Sequence[Case], config: JobConfig) -> list[Case]:
    """Return the cases of the model nearest in size."""
    wanted = math.log(count_parameters(config))
    sizes = sorted({case["parameters"] for case in cases}, key=lambda size: abs(math.log(size) - wanted))
    return [case for case in cases if case["parameters"] == sizes[0]] if sizes else []


def _measured(part: Mapping[str, Any], config: JobConfig, base: Costs) -> Iterator[tuple[str, _Figure]]:
    """Yield a model and each figure that was measured of it."""
    make = {"reconfigure": _changes, "recovery": _losses}.get(part["bench"])
    if make is None:
        return
    cases = _nearest([case for case in part["cases"] if "skipped" not in case], config)
    for figure in make(cases, base):
        if figure.values:
            yield f"{cases[0]['name'].split()[0]} ({cases[0]['parameters']:.3g} parameters)", figure


def _changes(cases: Sequence[Case], _: Costs) -> Iterator[_Figure]:
    for mode in ("pause", "overlap"):
        yield _Figure(f"exposed_{mode}_s", _known(cases, f"{mode}_s"), "seconds lost by a change")
    for name, what in (("prepare_s", "beside training"), ("stream_s", "for the state to move")):
        parts = [case["overlap_parts"] or case["pause_parts"] for case in cases]
        yield _Figure(name, _known([one for one in parts if one], name), what)
    restarts = [(case["restart_s"], case["restart_parts"]["save_s"]) for case in cases if case.get("restart_s")]
    yield _Figure("restart_s", [whole - save for whole, save in restarts], "seconds lost by a restart, less the save")
    yield _Figure("save_s", [save for _, save in restarts], "the save of a restart, to a memory disk")


def _losses(cases: Sequence[Case], base: Costs) -> Iterator[_Figure]:
    yield _Figure("detect_s", _known(cases, "mirror_detected_s"), "from SIGKILL until it was believed")
    recovered = [case["mirror_s"] - case["mirror_detected_s"] - base.exposed_pause_s for case in cases]
    yield _Figure("recover_s", recovered, "seconds lost from mirrors, less detection and a change")
    loaded = [case["checkpoint_s"] - case["checkpoint_detected_s"] for case in cases]
    yield _Figure("load_s", loaded, "seconds lost from a checkpoint, less detection")


def _known(cases: Sequence[Case], name: str) -> list[float]:
    return [float(case[name]) for case in cases if case.get(name) is not None]


def _steps(part: Mapping[str, Any], config: JobConfig) -> tuple[dict[str, float], str] | None:
    """Return a step's time by the arithmetic that a worker gets done, and what that is; None: it was not measured."""
    if part["bench"] != "train":
        return None
    cases = _nearest(part["cases"], config)
    if not cases:
        return None
    case = max(cases, key=lambda one: one["tflops"])
    layout, seconds = steps_at(config, case["tflops"])
    return {str(layout): seconds}, (
        f"{case['tflops']:.3g} TFLOP/s a worker with {case['name']} in {case['layout']}; here the model's arithmetic "
        f"in {layout}, other layouts by the cost model"
    )
