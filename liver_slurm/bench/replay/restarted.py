"""The same trace under a run that restarts from checkpoints, on such a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.bench.replay.elastic import START
from liver_slurm.bench.replay.measured import WorldSteps, of_restarts
from liver_slurm.bench.replay.owner import Owner, wait_until
from liver_slurm.bench.replay.restart_orders import Orders, read_steps, steps_file
from liver_slurm.bench.replay.restarting import RestartingRun
from liver_slurm.bench.replay.stage import FIXED_NAMES, Replay
from liver_slurm.parallel.layout import Layout
from liver_slurm.simulation.capacity import Capacity, capacity
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.strategies import save_interval


def replay_restarts(
    replay: Replay, costs: Costs, say: Callable[[str], None], every_s: float | None = None
) -> dict[str, Any]:
    """Replay the trace under a run that restarts; returns what was measured.

    Args:
        replay: the trace.
        costs: what checkpoints take, for the interval between them, and steps, for the choice of layouts.
        say: is told what happens.
        every_s: seconds between checkpoints on the way; default: as its losses ask for.

    Raises:
        LiverError: one of its worlds has failed.
    """
    here: Capacity = capacity(replay.setting(), replay.config(), stopping(costs))
    if every_s is None and (interval := save_interval(here)) < math.inf:
        every_s = interval
    folder = replay.folder / "restarting"
    also = f", and each {every_s:.1f} s" if every_s is not None else ""
    say(f"restarting: a checkpoint for each change of nodes{also}, {folder}")
    with replay.cluster():
        owner = Owner(replay.names(), replay.reclaims, replay.folder / "production")
        run = RestartingRun(here, every_s, folder)
        try:
            wait_until(lambda: run.trains, f"the run did not train; see {folder}/logs; it did not", START)
            begin = owner.begin()
            run.wait_for_nodes(replay.nodes, FIXED_NAMES)
            end = owner.play(replay.seconds, run.turn)
        finally:
            run.close()
    offered = replay.setting().offered_device_s(here.config)
    found = of_restarts(read_worlds(folder), begin, end, offered)
    say(f"restarting: ETTR {found.ettr:.4f}, capacity goodput {found.capacity_goodput:.4f}, {found.changes} changes")
    return {
        "folder": str(folder), "begin": begin, "end": end, "offered_device_s": offered, "every_s": every_s,
        "figures": found.document(), "reclaims": owner.document(),
    }  # fmt: skip


def stopping(costs: Costs) -> Costs:
    """Return the costs of this run, whose training stands until a checkpoint is written."""
    return replace(costs, stall_s=costs.save_s)


def read_worlds(folder: Path) -> Sequence[WorldSteps]:
    """Read what each world of such a run has trained."""
    found = []
    for number in range(len(list(folder.glob("orders-*.json")))):
        orders = msgspec.json.decode((folder / f"orders-{number}.json").read_bytes(), type=Orders)
        size = Layout.parse(orders.layout).size
        found.append(WorldSteps(size, read_steps(steps_file(orders)), orders.layout))
    return found
