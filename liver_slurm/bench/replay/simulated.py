"""The same trace simulated, with the costs that another replay has measured on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from liver_slurm.bench.replay.elastic import ledger_of
from liver_slurm.bench.replay.measured import Figures, WorldSteps, figures, restart_costs
from liver_slurm.bench.replay.restarted import read_worlds, stopping
from liver_slurm.bench.replay.stage import Replay
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.calibration import costs_of, queue_seconds
from liver_slurm.simulation.capacity import capacity
from liver_slurm.simulation.costs import Costs, assumed
from liver_slurm.simulation.elastic_run import ElasticRun
from liver_slurm.simulation.setting import Setting
from liver_slurm.simulation.strategies import restart_from_checkpoints

SEEDS = 8
"""Simulations of the product, whose looks at Slurm begin at other moments; figures are their means."""


def learn(replay: Replay, elastic: Mapping[str, Any], restarting: Mapping[str, Any] | None) -> tuple[Costs, float]:
    """Return costs as replays of the product, and of restarts, have measured them; and what Slurm takes to start a job.

    Without a replay of restarts what it would tell is assumed.
    """
    run = Path(elastic["run"])
    ledger = ledger_of(run, elastic["end"])
    costs = costs_of(ledger, run.name, assumed(replay.config()))
    if restarting is not None:
        measured = restart_costs(read_worlds(Path(restarting["folder"])))
        for name, values in measured.items():
            if values:
                notes = {**costs.notes, name: f"measured: the mean of {len(values)} of a run that restarts"}
                known: dict[str, Any] = {name: statistics.fmean(values), "notes": notes}
                costs = replace(costs, **known)
    return costs, queue_seconds(ledger)


def simulate_elastic(replay: Replay, costs: Costs, queue_s: float, seeds: int = SEEDS) -> Figures:
    """Simulate the run of the product."""
    # The run writes no checkpoints on the way.
    config, prices = replay.config(), replace(costs, stall_s=0.0)
    found = []
    for seed in range(seeds):
        setting = replace(replay.setting(queue_s), seed=seed)
        result = ElasticRun(config, setting, prices, config.standby.policy, config.stream.mode).run()
        found.append(_figures(result.account, result.changes, setting, config))
    return mean(found)


def simulate_restarts(replay: Replay, costs: Costs, queue_s: float) -> Figures:
    """Simulate the run that restarts."""
    config, setting = replay.config(), replay.setting(queue_s)
    outcome = restart_from_checkpoints(capacity(setting, config, stopping(costs)), grows=True)
    return _figures(outcome.account, outcome.changes, setting, config)


def restart_steps(costs: Costs, worlds: Sequence[WorldSteps]) -> Costs:
    """Return costs with the steps that a run that restarts has measured: nothing of the product runs beside."""
    found: dict[str, list[float]] = {}
    for world in worlds:
        if len(world.steps) > 5:
            found.setdefault(world.layout, []).append(world.usual)
    return replace(costs, step_s={**costs.step_s, **{name: statistics.median(one) for name, one in found.items()}})


def _figures(account: Account, changes: int, setting: Setting, config: Any) -> Figures:
    offered = setting.offered_device_s(config)
    return figures(
        account.productive_s, account.productive_device_s, setting.trace.seconds, offered, changes, account.steps
    )


def mean(found: Sequence[Figures]) -> Figures:
    """Return the means of several."""
    documents = [one.document() for one in found]
    means: dict[str, Any] = {name: statistics.fmean(one[name] for one in documents) for name in documents[0]}
    return Figures(**means)
