"""Costs from what a run directory has measured: its steps, changes, checkpoints, starts and losses.

Folded from the run's ledger. What the run has not done, such as a change in the other mode, stays as it was.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from liver_slurm.base.errors import BadInput
from liver_slurm.observability.ledger.account import Account
from liver_slurm.observability.ledger.changes import LOSS, Change
from liver_slurm.observability.ledger.document import Ledger, make_ledger
from liver_slurm.observability.ledger.facts import read_facts
from liver_slurm.rundir.events import (
    CheckpointWritten,
    LaunchRefused,
    ReconfigurationPrepared,
    StandbyJobChanged,
    StandbyLaunch,
    WorkerLost,
)
from liver_slurm.rundir.paths import RunDir
from liver_slurm.simulation.costs import STEP, Costs

FEWEST = 5
"""Steps of a layout, the first one of each world left out, from which on their median is believed."""

Figure = tuple[str, list[float], str]
"""Name of a figure, what was measured of it, and what that is."""


def calibrate(run_dir: RunDir, base: Costs, now: float) -> Costs:
    """Return ``base`` with all that the run of a directory has measured in its place; ``now``: seconds since the epoch.

    Raises:
        BadInput: it is no run directory, or no layout has trained for long enough.
    """
    return costs_of(make_ledger(read_facts(run_dir, now)), run_dir.path.name, base)


def costs_of(ledger: Ledger, name: str, base: Costs) -> Costs:
    """Return ``base`` with all that a run has measured in its place; each figure is a median.

    Args:
        ledger: the run's.
        name: the run's, for notes.
        base: costs that stay where the run has nothing to say.

    Raises:
        BadInput: no layout has trained for long enough.
    """
    steps = step_seconds(ledger.account)
    if not steps:
        raise BadInput(f"--calibrate {name}: no layout has trained {FEWEST} steps in a row; take a longer run")
    notes = {**base.notes, STEP: f"measured in {name}: the median step; other layouts by the cost model"}
    found: dict[str, float] = {}
    for figure, measured, what in _figures(ledger, base):
        if measured:
            found[figure] = statistics.median(measured)
            notes[figure] = f"measured in {name}: {what}, median of {len(measured)}"
    return replace(base, step_s=steps, notes=notes, **found)


def queue_seconds(ledger: Ledger) -> float:
    """Return the time from the order to start a standby job until it ran, in the median; 0.0: none has run.

    It has sbatch in it, Slurm's own time, and the wait for the look that shows it.
    """
    ordered: deque[float] = deque()
    known: dict[str, float] = {}
    found = []
    for event in ledger.account.facts.events:
        if isinstance(event, StandbyLaunch):
            ordered.extend([event.time] * event.count)
        elif isinstance(event, LaunchRefused):
            ordered.clear()
        elif isinstance(event, StandbyJobChanged):
            if event.job_id not in known and ordered:
                known[event.job_id] = ordered.popleft()
            if event.state == "running" and event.job_id in known:
                found.append(event.time - known[event.job_id])
    return statistics.median(found) if found else 0.0


def step_seconds(account: Account) -> dict[str, float]:
    """Return the median time from the end of one step to that of the next, by layout."""
    steps = account.facts.steps
    by_layout: dict[str, list[float]] = {}
    for world in account.worlds:
        ends = steps.end[steps.generation == world.generation]
        if world.layout and len(ends) > 2:
            by_layout.setdefault(world.layout, []).extend(np.diff(ends)[1:].tolist())
    return {layout: statistics.median(found) for layout, found in by_layout.items() if len(found) >= FEWEST}


def _figures(ledger: Ledger, base: Costs) -> Iterator[Figure]:
    facts, made = ledger.account.facts, [change for change in ledger.changes if change.committed]
    asked = [change for change in made if change.cause != LOSS]
    yield "join_s", _phase_sums(made, ("start", "bootstrap")), "from a job's start to its workers' readiness"
    prepared = [one.prepared - one.started for one in asked if one.prepared is not None and one.prepared > one.started]
    yield "prepare_s", prepared, "from the decision until all were prepared"
    wires = [event.wire_s for event in facts.events if isinstance(event, ReconfigurationPrepared) and event.wire_s]
    yield "stream_s", wires, "as the coordinator expected it"
    for mode in ("pause", "overlap"):
        exposed = [change.exposed_s for change in asked if change.mode == mode]
        yield f"exposed_{mode}_s", exposed, "all that a change cost, its first step's excess in it"
    detected = [event.detected_s for event in facts.events if isinstance(event, WorkerLost) and event.in_world]
    yield "detect_s", detected, "from the last word of a member that was lost"
    stood = [change.exposed_s for change in made if change.cause == LOSS]
    known = statistics.median(detected) if detected else base.detect_s
    moved = statistics.median([one.exposed_s for one in asked]) if asked else base.exposed_pause_s
    recovered = [max(0.0, seconds - known - moved) for seconds in stood]
    yield "recover_s", recovered, "what training stood after a loss, less its detection and a change"
    restart = ledger.restarted.restart_s
    yield "restart_s", [restart] if restart else [], "its own start and its first step's excess"
    written = [event for event in facts.events if isinstance(event, CheckpointWritten)]
    yield "save_s", [event.seconds for event in written], "until a checkpoint was written, in the background"
    yield "stall_s", [event.stall_s for event in written], "how long training stood for a checkpoint"
    every = ledger.expected.every_s
    yield "save_every_s", [every] if every else [], "between two checkpoints"


def _phase_sums(changes: list[Change], names: tuple[str, ...]) -> list[float]:
    """Return the time of some phases, of each change that has all of them."""
    found = []
    for change in changes:
        phases = {phase.name: phase.hidden_s + phase.exposed_s for phase in change.phases}
        if all(name in phases for name in names):
            found.append(sum(phases[name] for name in names))
    return found
