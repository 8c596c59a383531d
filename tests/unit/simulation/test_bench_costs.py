"""Costs from what the benchmarks print."""

from __future__ import annotations

from typing import Any

import pytest
from simulation_lab import COSTS, elastic_job

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.bench_costs import from_bench, is_bench
from liver_slurm.simulation.costs import count_parameters, steps_at

CONFIG = elastic_job()
SIZE = count_parameters(CONFIG)
MACHINE = {"cores": 8, "device": "cpu"}


def change(parameters: int, pause: float, overlap: float | None) -> dict[str, Any]:
    parts = {"prepare_s": 4.0 * pause, "stream_s": pause / 2}
    return {
        "name": "15M tp1pp1dp1→tp1pp1dp2 plain", "parameters": parameters,
        "pause_s": pause, "pause_parts": parts, "overlap_s": overlap, "overlap_parts": parts if overlap else None,
        "restart_s": 20.0 + pause, "restart_parts": {"save_s": 3.0},
    }  # fmt: skip


RECONFIGURE = {
    "bench": "reconfigure",
    "machine": MACHINE,
    "cases": [
        change(SIZE, 1.0, 0.1),
        change(SIZE, 2.0, None),
        change(SIZE, 3.0, 0.3),
        change(100 * SIZE, 50.0, 50.0),
        {"name": "15M", "parameters": SIZE, "skipped": "too large"},
    ],
}
RECOVERY = {
    "bench": "recovery",
    "machine": MACHINE,
    "cases": [
        {
            "name": "15M tp1pp1dp2 distributed", "parameters": SIZE, "mirror_s": 5.5, "mirror_detected_s": 0.5,
            "checkpoint_s": 9.0, "checkpoint_detected_s": 0.6,
        }
    ],
}  # fmt: skip
TRAIN = {
    "bench": "train",
    "machine": {"cores": 16, "device": "NVIDIA H200"},
    "cases": [
        {"name": "1.3B", "parameters": SIZE, "layout": "tp1pp1dp1", "tflops": 400.0},
        {"name": "7B", "parameters": 50 * SIZE, "layout": "tp1pp1dp1", "tflops": 500.0},
    ],
}


def test_changes_and_restarts() -> None:
    costs = from_bench(RECONFIGURE, "r.json", CONFIG, COSTS)
    assert (costs.exposed_pause_s, costs.exposed_overlap_s) == (2.0, pytest.approx(0.2))
    assert (costs.prepare_s, costs.stream_s) == (8.0, 1.0)
    assert (costs.restart_s, costs.save_s) == (19.0, 3.0)
    assert costs.detect_s == COSTS.detect_s
    model = f"15M ({SIZE:.3g} parameters)"
    note = f"from r.json, bench reconfigure of {model} on 8 cores: seconds lost by a change, median of 3"
    assert costs.note("exposed_pause_s") == note


def test_losses() -> None:
    costs = from_bench(RECOVERY, "r.json", CONFIG, COSTS)
    assert costs.detect_s == 0.5
    assert costs.recover_s == 5.5 - 0.5 - COSTS.exposed_pause_s
    assert costs.load_s == pytest.approx(8.4)
    assert costs.note("load_s").endswith("measured once")


def test_steps_are_those_of_the_model_nearest_in_size() -> None:
    costs = from_bench(TRAIN, "t.json", CONFIG, COSTS)
    layout, seconds = steps_at(CONFIG, 400.0)
    assert costs.step_s == {str(layout): seconds}
    assert "400 TFLOP/s a worker with 1.3B in tp1pp1dp1" in costs.note("step_s")
    assert "NVIDIA H200" in costs.note("step_s")


def test_all_of_a_machine_in_one_document() -> None:
    one, *others = ({**RECONFIGURE, "cases": [case]} for case in RECONFIGURE["cases"][:3])  # type: ignore[index]
    parts = {"train": TRAIN, "a": one, "b": others[0], "c": others[1], "transfer": {"failed": "no link"}}
    costs = from_bench({"bench": "gpu", "parts": parts}, "bench-gpu.json", CONFIG, COSTS)
    assert costs.exposed_pause_s == 2.0
    assert costs.step_s != COSTS.step_s


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"bench": "plan", "cases": [], "machine": MACHINE}, "no figure of bench train, reconfigure or recovery"),
        ({"bench": "reconfigure", "cases": [], "machine": MACHINE}, "no figure of bench train"),
        ({"bench": "reconfigure", "cases": [{"name": "15M"}]}, "bench reconfigure: KeyError: 'parameters'"),
        ({"bench": "train"}, "bench train: KeyError"),
    ],
)
def test_what_has_no_figures_is_told_in_one_line(document: dict[str, Any], said: str) -> None:
    assert is_bench(document)
    with pytest.raises(BadInput, match=said) as caught:
        from_bench(document, "b.json", CONFIG, COSTS)
    assert "\n" not in str(caught.value)


def test_costs_are_no_benchmark() -> None:
    assert not is_bench({"join_s": 3})
    assert not is_bench([1])
