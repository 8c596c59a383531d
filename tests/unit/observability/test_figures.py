"""A run's figures: their names are a contract, and the dashboard asks for none that there is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from event_samples import committed
from figure_names import exported_names
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from top_samples import training

from liver_slurm.coordinator.core.workers import Eviction
from liver_slurm.coordinator.core.worlds import Cause
from liver_slurm.observability.counters import CAUSES, NOTICES, RunCounters
from liver_slurm.observability.figures import Moment, figures
from liver_slurm.observability.history import RunHistory
from liver_slurm.observability.openmetrics import exposition
from liver_slurm.rundir.events import Event, Notice, to_document
from liver_slurm.rundir.metrics import StepMetrics

DASHBOARD = Path(__file__).parents[3] / "plugins" / "grafana" / "liver-slurm.json"
NAMES = """
liver_checkpoint_stall_seconds_total liver_checkpoints_total liver_consumed_samples liver_consumed_tokens
liver_coordinator_epoch liver_coordinator_starts_total
liver_generation liver_grad_norm liver_last_step_timestamp_seconds liver_layout_size liver_learning_rate liver_loss
liver_mfu_ratio liver_notices liver_notices_received_total liver_notifications_total
liver_reconfiguration_exposed_seconds_total liver_reconfiguration_moved_bytes_total
liver_reconfiguration_pause_seconds_total liver_reconfigurations_total liver_reconfiguring liver_remaining_seconds
liver_restarts_total liver_run_info liver_run_state liver_samples_total liver_slurm_queries_per_minute
liver_standby_jobs liver_standbys liver_step liver_step_seconds liver_steps_lost_total liver_steps_target
liver_tflops_per_gpu liver_tokens_per_second liver_tokens_total liver_workers liver_workers_lost_total
"""


def moment(*events: Event) -> Moment:
    history, counters = RunHistory(), RunCounters()
    for event in events:
        history.add(to_document(event))
        counters.add(to_document(event))
    step = StepMetrics(
        step=1234, loss=2.5, grad_norm=0.5, lr=3e-4, tokens=1024, consumed_samples=19744, generation=7,
        layout="tp2pp1dp4", start=100.0, end=100.5,
    )  # fmt: skip
    return Moment("gpt-1", 64, training().status, history, counters, [step], 320, {"sent": 3, "failed": 1})


def samples(of: Moment) -> dict[tuple[str, str], float]:
    """Values by name and labels, but for the run's."""
    return {
        (
            sample.name,
            ",".join(f"{name}={value}" for name, value in sample.labels.items() if name != "run"),
        ): sample.value
        for family in text_string_to_metric_families(exposition(figures(of)))
        for sample in family.samples
    }


def test_names_are_a_contract() -> None:
    assert exported_names() == set(NAMES.split())


def test_values_are_those_of_the_run() -> None:
    found = samples(moment(committed(), Notice(worker="standby-98-0", kind="preemption")))
    expected = {
        ("liver_run_info", "name=gpt,job_id=4711"): 1.0,
        ("liver_run_state", "state=training"): 1.0,
        ("liver_step", ""): 1234.0,
        ("liver_layout_size", "dimension=dp"): 4.0,
        ("liver_workers", ""): 8.0,
        ("liver_standbys", "ready=true"): 1.0,
        ("liver_standby_jobs", "state=pending"): 1.0,
        ("liver_notices", "kind=preemption"): 1.0,
        ("liver_notices_received_total", "kind=preemption"): 1.0,
        ("liver_loss", ""): 2.5,
        ("liver_step_seconds", ""): 0.5,
        ("liver_consumed_samples", ""): 19744.0,
        ("liver_consumed_tokens", ""): 19744.0 * 64,
        ("liver_samples_total", ""): 320.0,
        ("liver_tokens_total", ""): 320.0 * 64,
        ("liver_mfu_ratio", ""): 0.4045,
        ("liver_reconfigurations_total", "cause=capacity,result=committed"): 1.0,
        ("liver_reconfiguration_moved_bytes_total", ""): 2.0**20,
        ("liver_notifications_total", "result=failed"): 1.0,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_what_has_not_come_yet_is_zero() -> None:
    """A counter that appears with its first event hides it from ``increase``."""
    assert set(CAUSES) == set(get_args(Cause))
    kinds = get_args(get_type_hints(Eviction)["kind"])  # of several Literals
    assert set(NOTICES) == {kind for one in kinds for kind in get_args(one) or (one,)}
    found = samples(moment())
    assert found["liver_reconfigurations_total", "cause=loss,result=aborted"] == 0.0
    assert found["liver_notices_received_total", "kind=time limit"] == 0.0
    assert found["liver_checkpoints_total", "result=failed"] == 0.0


def test_every_sample_says_whose_it_is() -> None:
    text = exposition(figures(moment(committed())))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('{run="gpt-1"' in line for line in lines)


def expressions(part: Any) -> Iterator[str]:
    """Every query of a dashboard."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(part, list):
        for one in part:
            yield from expressions(one)


def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {name for text in expressions(dashboard) for name in re.findall(r"\bliver_\w+", text)}
    assert asked - exported_names() == set()
    assert len(asked) >= 20
    panels = dashboard["panels"]
    assert all(panel["type"] == "row" or panel["targets"] for panel in panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert not [
            other["title"] for other in panels if other["id"] > panel["id"] and _overlap(place, other["gridPos"])
        ], panel["title"]


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[a] < other[a] + other[b] and other[a] < one[a] + one[b] for a, b in (("x", "w"), ("y", "h")))
