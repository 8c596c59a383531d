"""A small job, a small cluster and round figures, for tests of the simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coordinator_lab import job

from liver_slurm.config.schema import ElasticSection, JobConfig, StandbySection
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.setting import Setting
from liver_slurm.simulation.trace import Span, Trace, from_spans

LAYOUTS = ("tp1pp1dp2", "tp1pp1dp4", "tp1pp1dp6", "tp1pp1dp8")
# Of 8 samples 6 replicas take 2 each, as 4 do: what the cost model says, by which the coordinator chooses.
COSTS = Costs(
    step_s={"tp1pp1dp2": 1.0, "tp1pp1dp4": 0.5, "tp1pp1dp6": 0.5, "tp1pp1dp8": 0.25},
    join_s=20.0,
    prepare_s=10.2,
    stream_s=0.1,
    exposed_pause_s=2.0,
    exposed_overlap_s=0.2,
    detect_s=1.0,
    recover_s=4.0,
    restart_s=60.0,
    load_s=30.0,
    save_s=5.0,
    stall_s=0.0,
    save_every_s=600.0,
)


def elastic_job(**standby: Any) -> JobConfig:
    """Two guaranteed workers, and up to three nodes of two; a step takes 8 samples of 64 tokens in any layout."""
    made = job(workers=2, lost_after=30.0, heartbeat=1.0, prepare_timeout=300.0)
    fields: dict[str, Any] = {
        "partitions": ("spot",), "max_jobs": 3, "tasks_per_node": 2, "poll": 2.0, "queries_per_minute": 1e6,
        "time": "24:00:00", "hold": 60.0,
    }  # fmt: skip
    return replace(
        made,
        standby=StandbySection(**{**fields, **standby}),
        elastic=ElasticSection(layouts=LAYOUTS, settle=0.0),
        train=replace(made.train, distributed_optimizer=False),
    )


def trace(seconds: float, *spans: tuple[str, float, float], sudden: bool = False) -> Trace:
    """A trace of (node, begin, end)."""
    return from_spans("made", seconds, [Span(*span, sudden=sudden) for span in spans])


def setting(made: Trace, notice: float = 60.0, **more: Any) -> Setting:
    """A trace with a minute's notice."""
    return Setting(made, notice, **more)
