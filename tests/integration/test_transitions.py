"""Every transition of the table, in plain processes: state and counters cross bit for bit, however it is optimized."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from liver_slurm.parallel.layout import Layout
from liver_slurm.scheduler.local.process import worker_environment

LAYOUTS = "tp1pp1dp1,tp2pp1dp1,tp1pp2dp1,tp1pp1dp2,tp2pp1dp2,tp1pp2dp2,tp2pp2dp1,tp1pp1dp3,tp4pp1dp1,tp1pp4dp1"
"""Of at most four workers; the pairs with tp2pp2dp2, which needs eight, have a test of their own."""

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

WORKER = Path(__file__).with_name("transition_worker.py")
TESTS = Path(__file__).parents[1]
SUPPORT, ROOT = str(TESTS / "support"), str(TESTS.parent)


def walk(
    layouts: str, workers: int, cases: list[dict[str, object]], folder: Path, device: str = "cpu", hub: str = ""
) -> list[dict[str, object]]:
    """Run the walk in ``workers`` processes; returns what the first of them printed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [folder / f"w{index}.log" for index in range(workers)]
    processes = []
    for index, log in enumerate(logs):
        environment = {**os.environ, **worker_environment(index, workers, device != "cpu"), "TRANSITION_DEVICE": device}
        # Where the package is not installed, as on a machine that is lent for its cards, it is found from here.
        environment["PYTHONPATH"] = os.pathsep.join([SUPPORT, ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        arguments = [f"w{index}", str(store.port), layouts, json.dumps(cases), hub]
        with log.open("w") as stream:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), *arguments],
                    stdout=subprocess.PIPE if index == 0 else stream,
                    stderr=stream,
                    env=environment,
                    text=True,
                )
            )
    try:
        output, _ = processes[0].communicate(timeout=850)
        codes = [processes[0].returncode]
        codes += [process.wait(timeout=30) for process in processes[1:] if codes == [0]]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(codes):
        pytest.fail("\n".join(f"==== {log.name}\n{log.read_text()[-3000:]}" for log in logs))
    return [json.loads(line) for line in output.splitlines()]


COMBINATIONS = pytest.mark.parametrize(
    ("distributed", "tied"),
    [
        (True, False),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in ((False, True), (True, True), (False, False))),
    ],
)
"""Of distributed optimizer and tied embeddings; the other three are in `make test-long`."""


@COMBINATIONS
def test_every_transition_of_up_to_four_workers_is_bitwise(distributed: bool, tied: bool, tmp_path: Path) -> None:
    # LS-3
    (result,) = walk(LAYOUTS, 4, [{"precision": "fp32", "distributed": distributed, "tied": tied}], tmp_path)
    assert result["transitions"] == 10 * 9
    assert result["boxes"]


@pytest.mark.long
@pytest.mark.parametrize(("distributed", "tied"), [(True, False), (False, True), (True, True), (False, False)])
def test_transitions_with_eight_workers_are_bitwise(distributed: bool, tied: bool, tmp_path: Path) -> None:
    case: dict[str, object] = {"precision": "fp32", "distributed": distributed, "tied": tied}
    (result,) = walk(f"tp2pp2dp2,{LAYOUTS}", 8, [case], tmp_path, hub="tp2pp2dp2")
    assert result["transitions"] == 2 * 10
    assert result["boxes"]


@pytest.mark.long
def test_context_parallel_layouts_cross_bitwise(tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": "fp32", "distributed": True, "tied": True},
        {"precision": "bf16", "distributed": True, "tied": False, "overlap": True},
        {"precision": "fp32", "distributed": False, "tied": False, "overlap": True},
    ]
    layouts = "tp1pp1dp3,tp1cp2pp1dp2,tp1cp4pp1dp1,tp2cp2pp1dp1,tp1cp2pp2dp1"
    for result in walk(layouts, 4, cases, tmp_path):
        assert result["transitions"] == 5 * 4
        assert result["boxes"]


INTERLEAVED = "tp1pp2vpp2dp1,tp1pp4vpp2dp1,tp1pp2vpp2dp2,tp2pp1dp1,tp1pp4dp1"
"""For a model of eight layers: chunks that lie apart, stages that are whole, and none."""
LONGER_INTERLEAVED = f"{INTERLEAVED},tp1pp2vpp4dp1,tp2pp2vpp2dp1,tp1cp2pp2vpp4dp1,tp1pp2dp2,tp1pp1dp3"


@pytest.mark.parametrize(
    ("layouts", "modes"),
    [
        pytest.param(INTERLEAVED, (("bf16", True, True), ("fp32", False, False)), marks=pytest.mark.long),
        pytest.param(INTERLEAVED, (("fp32", True, False), ("fp32", False, True)), marks=pytest.mark.long),
        pytest.param(LONGER_INTERLEAVED, (("bf16", False, False), ("fp32", True, True)), marks=pytest.mark.long),
        pytest.param(LONGER_INTERLEAVED, (("bf16", False, True), ("bf16", True, False)), marks=pytest.mark.long),
    ],
)
def test_interleaved_layouts_cross_bitwise(
    layouts: str, modes: tuple[tuple[str, bool, bool], ...], tmp_path: Path
) -> None:
    # LS-3
    cases: list[dict[str, object]] = [
        {"precision": precision, "distributed": distributed, "tied": distributed, "layers": 8, "overlap": overlap}
        for precision, distributed, overlap in modes
    ]
    count = len(layouts.split(","))
    for result in walk(layouts, 4, cases, tmp_path):
        assert result["transitions"] == count * (count - 1)
        assert result["boxes"]


def test_chunks_without_room_are_late_and_bitwise(tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": "bf16", "distributed": True, "tied": True, "layers": 4, "overlap": True, "limited": True},
        {"precision": "fp32", "distributed": False, "tied": False, "layers": 4, "overlap": False, "limited": True},
    ]
    for result in walk("tp1pp2vpp2dp1,tp2pp1dp1,tp1pp1dp3", 3, cases, tmp_path, hub="tp1pp2vpp2dp1"):
        assert result["late"]


FEW = "tp1pp1dp3,tp2pp1dp2,tp1pp2dp1"
"""Layouts of the table whose pairs change each dimension, alone and together, with and without a common divisor."""

MIXED = "tp1pp1ep2dp4,tp1pp1ep4dp4,tp1pp1dp3,tp2pp1ep2dp2,tp1pp2ep2dp2"
"""For a mixture of experts: with and without expert parallelism."""
LONGER_MIXED = f"{MIXED},tp1pp1ep2dp2,tp1cp2pp1ep2dp1,tp1cp2pp1ep4dp2,tp2pp1dp1,tp1pp3dp1"
WHOLE = "tp2pp1dp1,tp2pp1ep2etp1dp1,tp2pp1etp1dp1"
"""For a mixture of experts, which are cut as all else is, or whole where it is cut: some on each rank, or all."""
LONGER_WHOLE = f"{WHOLE},tp4pp1ep4etp1dp1,tp2cp2pp1etp1dp1,tp1pp1ep2etp2dp4,tp2pp2ep2etp1dp1,tp1pp1ep2dp2,tp1pp1dp3"
"""Also in more parts than all else."""
FEWER_TWICE_AS_WIDE = "tp2pp1ep2etp1dp4,tp4pp1ep4etp1dp1,tp2pp1ep2dp4"
"""Of eight workers and of four."""


@pytest.mark.parametrize(
    ("layouts", "modes"),
    [
        pytest.param(MIXED, (("bf16", True, True), ("fp32", False, False)), marks=pytest.mark.long),
        (WHOLE, (("bf16", True, True),)),
        pytest.param(MIXED, (("fp32", True, False), ("fp32", False, True)), marks=pytest.mark.long),
        pytest.param(LONGER_MIXED, (("bf16", False, False), ("fp32", True, True)), marks=pytest.mark.long),
        pytest.param(LONGER_MIXED, (("bf16", False, True),), marks=pytest.mark.long),
        pytest.param(LONGER_WHOLE, (("bf16", False, False), ("fp32", True, True)), marks=pytest.mark.long),
        pytest.param(LONGER_WHOLE, (("fp32", True, False), ("bf16", False, True)), marks=pytest.mark.long),
        *(
            pytest.param(FEWER_TWICE_AS_WIDE, ((precision, distributed, overlap),), marks=pytest.mark.long)
            for precision, distributed, overlap in (
                ("bf16", True, True),
                ("fp32", False, False),
                ("fp32", True, False),
                ("bf16", False, True),
            )
        ),
    ],
)
def test_mixtures_of_experts_cross_bitwise(
    layouts: str, modes: tuple[tuple[str, bool, bool], ...], tmp_path: Path
) -> None:
    # LS-3
    cases: list[dict[str, object]] = [
        {"precision": precision, "distributed": distributed, "tied": distributed, "experts": True, "overlap": overlap}
        for precision, distributed, overlap in modes
    ]
    names = layouts.split(",")
    workers = max(Layout.parse(name).size for name in names)
    for result in walk(layouts, workers, cases, tmp_path):
        assert result["transitions"] == len(names) * (len(names) - 1)
        assert result["boxes"]


@pytest.mark.parametrize(
    ("layouts", "cases"),
    [
        ("tp1pp1ep2dp4,tp2pp1ep2dp2,tp1pp3dp1", ({"precision": "fp32", "experts": True, "overlap": True},)),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("tp1pp2vpp2dp2,tp2pp1dp1,tp1pp4dp1", ({"precision": "fp32", "layers": 8, "overlap": True},)),
                (FEW, ({"precision": "fp32"}, {"precision": "bf16", "tied": True, "overlap": True, "ema_decay": 0.8})),
                (LAYOUTS, ({"precision": "fp32", "tied": True},)),
                (LAYOUTS, ({"precision": "bf16", "overlap": True},)),
                (LONGER_MIXED, ({"precision": "bf16", "experts": True},)),
                (LONGER_WHOLE, ({"precision": "fp32", "experts": True, "overlap": True},)),
                (LONGER_INTERLEAVED, ({"precision": "bf16", "layers": 8},)),
            )
        ),
    ],
)
def test_matrices_of_muon_and_all_else_cross_bitwise(
    layouts: str, cases: tuple[dict[str, object], ...], tmp_path: Path
) -> None:
    """Cut, gathered and apart; in mode overlap matrices come when training stands, and the rest before."""
    # LS-3
    usual: dict[str, object] = {"distributed": False, "tied": False, "optimizer": "muon"}
    results = walk(layouts, 4, [{**usual, **case} for case in cases], tmp_path)
    count = len(layouts.split(","))
    for case, result in zip(cases, results, strict=True):
        assert result["transitions"] == count * (count - 1)
        assert result["boxes"]
        assert bool(result.get("early")) == ("overlap" in case)


def test_matrices_of_muon_without_room_are_late_and_bitwise(tmp_path: Path) -> None:
    case: dict[str, object] = {"precision": "bf16", "distributed": False, "tied": True, "optimizer": "muon"}
    cases = [{**case, "limited": True, "overlap": overlap} for overlap in (True, False)]
    for result in walk("tp1pp1dp2,tp2pp1dp1,tp1pp3dp1", 3, cases, tmp_path, hub="tp1pp1dp2"):
        assert result["late"]


def test_experts_without_room_are_late_and_bitwise(tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": "bf16", "distributed": True, "tied": True, "experts": True, "overlap": True, "limited": True}
    ]
    (result,) = walk("tp1pp1ep2dp2,tp2pp1dp1,tp1pp1dp3", 3, cases, tmp_path, hub="tp1pp1ep2dp2")
    assert result["late"]


def test_bf16_with_masters_crosses_bitwise(tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": "bf16", "distributed": distributed, "tied": True} for distributed in (True, False)
    ]
    for result in walk("tp1pp1dp3,tp2pp1dp2,tp1pp2dp1,tp2pp2dp1", 4, cases, tmp_path):
        assert result["boxes"]


KINDS = (("fp32", True), ("fp32", False), ("bf16", True), ("bf16", False))
"""Precision, and whether the optimizer is distributed."""


@pytest.mark.parametrize(
    ("layouts", "kinds"),
    [(FEW, KINDS), *(pytest.param(LAYOUTS, (kind,), marks=pytest.mark.long) for kind in KINDS)],
)
def test_overlap_brings_what_the_old_world_holds(
    layouts: str, kinds: tuple[tuple[str, bool], ...], tmp_path: Path
) -> None:
    """Every pair of layouts, while steps are trained, one of them skipped; gradients are clipped, rates change."""
    cases: list[dict[str, object]] = [
        {"precision": precision, "distributed": distributed, "tied": distributed, "overlap": True}
        for precision, distributed in kinds
    ]
    results = walk(layouts, 4, cases, tmp_path)
    assert len(results) == len(cases)
    count = len(layouts.split(","))
    for result in results:
        assert result["transitions"] == count * (count - 1)
        assert result["boxes"]
        assert result["early"]


AVERAGED = {"ema_decay": 0.8, "tied": False}
"""Of a job that keeps moving averages of its weights."""
ROUNDED = {"moments_precision": "bf16", "tied": True}
"""Of one that keeps its optimizer's moments in bf16."""
NARROW = "tp1pp1dp2,tp2pp1dp1,tp1pp3dp1"


@pytest.mark.parametrize(
    ("layouts", "cases"),
    [
        pytest.param(
            FEW, (("bf16", True, {"overlap": True} | AVERAGED), ("fp32", False, AVERAGED)), marks=pytest.mark.long
        ),
        (FEW, (("fp32", True, {"overlap": True} | ROUNDED), ("bf16", False, AVERAGED | ROUNDED))),
        pytest.param(
            FEW,
            (("fp32", False, {"overlap": True} | AVERAGED), ("bf16", True, AVERAGED), ("fp32", True, ROUNDED)),
            marks=pytest.mark.long,
        ),
        pytest.param(
            NARROW,
            (("bf16", True, {"overlap": True, "limited": True, "optimizer": "sgd"} | AVERAGED | ROUNDED),),
            marks=pytest.mark.long,
        ),
        pytest.param(
            NARROW,
            (("fp32", False, {"limited": True} | AVERAGED), ("bf16", False, {"limited": True} | ROUNDED)),
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_a_job_keeps_of_each_element_crosses_bitwise(
    layouts: str, cases: tuple[tuple[str, bool, dict[str, object]], ...], tmp_path: Path
) -> None:
    # LS-3
    jobs = [{"precision": kind, "distributed": split, **more} for kind, split, more in cases]
    count = len(layouts.split(","))
    for given, result in zip(jobs, walk(layouts, 4, jobs, tmp_path), strict=True):
        assert result["transitions"] == count * (count - 1)
        assert result["boxes"]
        assert bool(result["late"]) == given.get("limited", False)
        assert bool(result.get("early")) == given.get("overlap", False)


@pytest.mark.long
def test_overlap_with_eight_workers_brings_what_the_old_world_holds(tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": "fp32", "distributed": distributed, "tied": True, "overlap": True}
        for distributed in (True, False)
    ]
    for result in walk("tp2pp2dp2,tp2pp1dp1,tp1pp2dp2,tp1pp1dp3", 8, cases, tmp_path, hub="tp2pp2dp2"):
        assert result["transitions"] == 2 * 3
        assert result["early"]


@pytest.mark.parametrize(
    "modes",
    [
        (("bf16", True), ("fp32", False)),
        pytest.param((("fp32", True), ("bf16", False)), marks=pytest.mark.long),
    ],
)
def test_layers_without_room_are_late_and_bitwise(modes: tuple[tuple[str, bool], ...], tmp_path: Path) -> None:
    """Each transition gets the least memory that it can do with, or a little more, and holds no more than that."""
    cases: list[dict[str, object]] = [
        {"precision": precision, "distributed": distributed, "tied": distributed, "overlap": overlap, "limited": True}
        for precision, overlap in modes
        for distributed in (True, False)
    ]
    for result in walk("tp1pp1dp2,tp2pp1dp1,tp1pp3dp1,tp1pp1dp1", 3, cases, tmp_path, hub="tp1pp1dp2"):
        assert result["transitions"] == 2 * 3
        assert result["boxes"]
        assert result["late"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: torch.cuda.is_available() is False")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transitions_on_one_card_are_bitwise(precision: str, tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": precision, "distributed": distributed, "tied": True} for distributed in (True, False)
    ]
    for result in walk("tp2pp1dp1,tp1pp2dp1,tp1pp1dp2,tp1pp1dp4", 4, cases, tmp_path, device="cuda"):
        assert result["transitions"] == 4 * 3
        assert result["boxes"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: torch.cuda.is_available() is False")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_overlap_on_one_card_brings_what_the_old_world_holds(precision: str, tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": precision, "distributed": distributed, "tied": True, "overlap": True}
        for distributed in (True, False)
    ]
    cases.append({"precision": precision, "distributed": True, "overlap": True, "ema_decay": 0.8, **ROUNDED})
    for result in walk("tp2pp1dp1,tp1pp2dp1,tp1pp1dp2,tp1pp1dp4", 4, cases, tmp_path, device="cuda"):
        assert result["transitions"] == 4 * 3
        assert result["early"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: torch.cuda.is_available() is False")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_without_room_on_one_card_are_late_and_bitwise(precision: str, tmp_path: Path) -> None:
    cases: list[dict[str, object]] = [
        {"precision": precision, "distributed": distributed, "tied": True, "overlap": True, "limited": True}
        for distributed in (True, False)
    ]
    for result in walk("tp2pp1dp1,tp1pp2dp1,tp1pp1dp2", 2, cases, tmp_path, device="cuda"):
        assert result["transitions"] == 3 * 2
        assert result["late"]
