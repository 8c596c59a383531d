"""``bench reconfigure``: what a change of layout costs training, by restart, in mode pause and in mode overlap.

The figure is the same for all three, :mod:`liver_slurm.bench.figures` says which: seconds lost between the last step
before and the first step after. Models of three sizes, each pair of layouts there and back, distributed optimizer off
and on, fp32. The restarts are made before, between and after the runs of ours; each figure is the median of several.

Where there are two cards or more, each rank has its own, and the model is one of 1.3e9 parameters in bf16 that fills
them, distributed optimizer; each transition is made once in each way, the restart between both modes of ours.

The restart is the baseline at its best: see :mod:`liver_slurm.bench.restart`. Ours are whole runs: see
:mod:`liver_slurm.bench.elastic`. What preparing beside training takes from it is ``slowed_s`` of their parts, and not
in the figure: it is nothing where the control thread has a core of its own.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
from tabulate import tabulate

from liver_slurm.bench import machine
from liver_slurm.bench.elastic import walk
from liver_slurm.bench.figures import Reconfigured, median_of, middle, ratio
from liver_slurm.bench.jobs import BILLION, BY_NAME, SIZES, Size, job, parameters, rank_bytes
from liver_slurm.bench.restart import Baseline
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout

PAIRS = (("tp2pp1dp1", "tp1pp2dp1"), ("tp1pp1dp2", "tp1pp1dp4"), ("tp2pp2dp1", "tp1pp1dp4"))
CARD_PAIRS = (("tp2pp1dp1", "tp1pp2dp1"), ("tp1pp1dp1", "tp1pp1dp2"), ("tp2pp2dp1", "tp1pp1dp4"))
"""Where each rank has a card of its own; those that there are too few for are left out."""
CARD_STEPS = 8
"""Steps of a world on cards before the next layout is asked for."""
REPETITIONS = 3
"""How often each transition is made."""
PROCESS_BYTES = 400 << 20
"""What a process holds beside its state: interpreter, torch, buffers."""
MODES: tuple[Literal["pause", "overlap"], ...] = ("pause", "overlap")


@dataclass(frozen=True)
class Pair:
    """Two layouts of one model, gone to and fro between."""

    size: Size
    one: Layout
    other: Layout
    distributed_optimizer: bool
    repetitions: int
    back: bool = True
    """Also from the other layout to the one."""

    @property
    def name(self) -> str:
        """For people."""
        kind = "distributed" if self.distributed_optimizer else "plain"
        return f"{self.size.name} {self.one}→{self.other} {kind}"

    def round(self, times: int = 1) -> list[Layout]:
        """Return the layouts of a walk that goes to and fro so many times."""
        return [self.one, *([self.other, self.one] if self.back else [self.other]) * times]


@dataclass
class _Measured:
    """What was measured of a pair: for each way, reconfigurations by (from, to)."""

    by_way: dict[str, dict[tuple[str, str], list[Reconfigured]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def take(self, way: str, layouts: Sequence[Layout], make: Callable[[], list[Reconfigured]]) -> None:
        """Measure, and sort the results by transition; a failure is written down and ends nothing."""
        if way in self.failed:
            return
        try:
            results = make()
        except Exception as error:  # noqa: BLE001 - one case that fails must not cost the others; its reason is reported
            self.failed[way] = f"{type(error).__name__}: {error}"
            return
        names = [str(layout) for layout in layouts]
        for step, result in zip(itertools.pairwise(names), results, strict=True):
            self.by_way.setdefault(way, {}).setdefault(step, []).append(result)


def run(quick: bool, sizes: Sequence[str] = ()) -> dict[str, Any]:
    """Measure everything; ``quick``: one transition of the smallest model, once.

    Args:
        sizes: names of models to measure; none: those that suit this machine.
    """
    chosen = [BY_NAME[name] for name in sizes]
    if quick:
        one, other = map(Layout.parse, PAIRS[0])
        return measure([Pair(size, one, other, True, repetitions=1, back=False) for size in chosen or SIZES[:1]])
    cards = machine.count_gpus()
    return measure(card_pairs(cards, chosen or [BILLION]) if cards > 1 else all_pairs(chosen or SIZES))


def card_pairs(cards: int, sizes: Sequence[Size] = (BILLION,)) -> list[Pair]:
    """Return what is measured where there are so many cards."""
    layouts = [tuple(map(Layout.parse, pair)) for pair in CARD_PAIRS]
    return [
        Pair(size, one, other, True, repetitions=1)
        for size in sizes
        for one, other in layouts
        if max(one.size, other.size) <= cards
    ]


def all_pairs(sizes: Sequence[Size] = SIZES) -> list[Pair]:
    """Return everything that the whole benchmark measures on CPUs, or on a card that ranks share."""
    return [
        Pair(size, Layout.parse(one), Layout.parse(other), distributed, REPETITIONS)
        for size in sizes
        for one, other in PAIRS
        for distributed in (False, True)
    ]


def measure(pairs: Sequence[Pair], modes: Sequence[Literal["pause", "overlap"]] = MODES) -> dict[str, Any]:
    """Measure these pairs; the document."""
    begun = time.monotonic()
    gpu = machine.has_gpu()
    document: dict[str, Any] = {"bench": "reconfigure", "machine": machine.describe(gpu)}
    cases: list[dict[str, Any]] = []
    formats: dict[str, Baseline] = {}
    for number, pair in enumerate(pairs, start=1):
        print(f"{number}/{len(pairs)} {pair.name}", file=sys.stderr)
        with machine.memory_folder() as folder:
            cases += _cases(pair, folder, gpu, modes, formats)
    document |= {
        "cases": cases,
        "ratio_pause_median": median_of(cases, "ratio_pause"),
        "ratio_overlap_median": median_of(cases, "ratio_overlap"),
        "seconds": time.monotonic() - begun,
        "definition": "seconds lost = end of the first step after - end of the last step before - a usual step of the "
        "world after; at least the time that training stood still",
    }
    most = max((max(pair.one.size, pair.other.size) for pair in pairs), default=0)
    cores = document["machine"]["cores"]
    if not gpu and cores < 2 * most:
        document["note"] = (
            f"up to {most} workers, each with a control thread beside its training thread, shared {cores} cores: "
            "training and streaming took time from each other, step times vary, and exposed times of a few "
            "hundredths of a second are within that"
        )
    return document


def _cases(
    pair: Pair,
    folder: Path,
    gpu: bool,
    modes: Sequence[Literal["pause", "overlap"]],
    formats: dict[str, Baseline],
) -> list[dict[str, Any]]:
    """Return the cases of one pair, one for each direction.

    ``formats``: what restarts of a model found to be the fastest.
    """
    config = _job(pair, folder, gpu)
    count = parameters(config)
    measured = _Measured()
    baseline = Baseline(config, folder, gpu)
    known = formats.get(pair.size.name)
    if gpu and known is not None and known.probes:  # trying them takes a minute there
        baseline = replace(known, config=config, folder=folder)
    formats[pair.size.name] = baseline
    skipped = "" if gpu else too_large(pair, count, psutil.virtual_memory().available)
    if not skipped:
        _measure(pair, measured, baseline, folder, modes, gpu)
    steps = [(pair.one, pair.other)] + ([(pair.other, pair.one)] if pair.back else [])
    return [_case(pair, source, target, count, measured, baseline, skipped) for source, target in steps]


def _job(pair: Pair, folder: Path, gpu: bool, mode: Literal["pause", "overlap"] = "pause") -> JobConfig:
    return job(
        pair.size,
        folder,
        pair.one,
        distributed_optimizer=pair.distributed_optimizer,
        mode=mode,
        gpus=1 if gpu else 0,
        layouts=(pair.other,) if gpu else (),
    )


def _measure(
    pair: Pair,
    measured: _Measured,
    baseline: Baseline,
    folder: Path,
    modes: Sequence[Literal["pause", "overlap"]],
    gpu: bool,
) -> None:
    """Measure restarts and our runs in turns.

    Of each once, the restart comes second: on cards it finds graphs compiled.
    """

    def restart() -> None:
        measured.take("restart", pair.round(), partial(baseline.chain, pair.round()))

    def ours(mode: Literal["pause", "overlap"]) -> None:
        layouts = pair.round(pair.repetitions)
        steps = CARD_STEPS if gpu else 5
        measured.take(mode, layouts, partial(walk, _job(pair, folder, gpu, mode), layouts, steps))

    if pair.repetitions > 1:
        waiting = list(modes)
        for _ in range(pair.repetitions):
            restart()
            for mode in waiting[:1]:
                ours(mode)
            waiting = waiting[1:]
        return
    for number, mode in enumerate(modes):
        ours(mode)
        if number == 0:
            restart()


def _case(
    pair: Pair, source: Layout, target: Layout, count: int, measured: _Measured, baseline: Baseline, skipped: str
) -> dict[str, Any]:
    case: dict[str, Any] = {
        "name": f"{pair.size.name} {source}→{target} {'distributed' if pair.distributed_optimizer else 'plain'}",
        "from": str(source),
        "to": str(target),
        "parameters": count,
        "distributed_optimizer": pair.distributed_optimizer,
        "checkpoint": baseline.save if baseline.probes else None,
        "checkpoint_save_and_load_s": baseline.probes,
    }
    if skipped:
        return {**case, "skipped": skipped}
    for way in ("restart", *MODES):
        results = measured.by_way.get(way, {}).get((str(source), str(target)), [])
        case[f"{way}_s"] = case[f"{way}_parts"] = None
        if results:
            middles = middle(results)
            case[f"{way}_s"], case[f"{way}_parts"] = middles.pop("lost_s"), middles.pop("parts")
            case |= {f"{way}_{name}": value for name, value in middles.items()}
            case[f"{way}_repetitions"] = len(results)
            if way in MODES:
                case[f"{way}_first_step_ratio"] = case[f"{way}_parts"]["first_step_s"] / case[f"{way}_step_s"]
    case["ratio_pause"] = ratio(case["restart_s"], case["pause_s"])
    case["ratio_overlap"] = ratio(case["restart_s"], case["overlap_s"])
    failed = {**measured.failed, **{f"checkpoint {name}": why for name, why in baseline.failures.items()}}
    return {**case, "failed": failed} if failed else case


def too_large(pair: Pair, count: int, available: int) -> str:
    """Return why a pair does not fit into memory; empty: it does."""
    worlds = [pair.one, pair.other]
    state = sum(layout.size * rank_bytes(count, layout, pair.distributed_optimizer) for layout in worlds)
    needed = state + max(layout.size for layout in worlds) * PROCESS_BYTES
    if needed <= available:
        return ""
    return f"old and new world need about {needed / 2**30:.1f} GiB together, and {available / 2**30:.1f} GiB are free"


def table(document: dict[str, Any]) -> str:
    """Return the document for people."""
    rows = [
        [case["name"], case["skipped"]]
        if "skipped" in case
        else [
            case["name"],
            *(_seconds(case[f"{way}_s"]) for way in ("restart", *MODES)),
            *(_times(case[name]) for name in ("ratio_pause", "ratio_overlap")),
            _seconds(case.get("overlap_step_s") or case.get("pause_step_s")),
            _moved(case),
        ]
        for case in document["cases"]
    ]
    headers = ["case", "restart", "pause", "overlap", "restart/pause", "restart/overlap", "a step", "moved"]
    failures = [
        f"{case['name']}: {way} failed: {why}"
        for case in document["cases"]
        for way, why in case.get("failed", {}).items()
    ]
    where = document["machine"]
    summary = (
        f"seconds lost, medians; median ratio: pause {_times(document['ratio_pause_median'])}, "
        f"overlap {_times(document['ratio_overlap_median'])}; {where['cores']} cores, {where['device']}; "
        f"{document['seconds']:.0f} s in all"
    )
    lines = [tabulate(rows, headers, disable_numparse=True), summary, *failures]
    return "\n".join([*lines, document["note"]] if "note" in document else lines)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def _moved(case: dict[str, Any]) -> str:
    parts = [parts for mode in MODES if (parts := case[f"{mode}_parts"]) and "bytes_moved" in parts]
    return " / ".join(f"{each['bytes_moved'] / 1e9:.2f} GB" for each in parts) or "–"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}×"
