"""Role × fault × phase × optimizer: whoever fails, however and whenever, the run goes on as if nothing had been.

`make test-faults` tries all and prints them as a table. A cell that the product does not do yet is a strict xfail with
its reason, so that it turns red when the product does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import paced_samples
import pytest
from fault_table import OPTIMIZERS, Cell, NurseryLab, cells, try_cell
from worker_nursery import Nursery

from liver_slurm.base.faults import Fault

KNOWN_STEPS = 80
IN_EVERY_CI = {
    ("joiner", Fault.KILL, "stream"),
    ("joiner", Fault.CUT, "before commit"),
    ("joiner", Fault.CUT, "stream"),
    ("coordinator", Fault.KILL, "stream"),
    ("coordinator", Fault.CUT, "prepare"),
    ("live worker", Fault.KILL, "steady"),
    ("live worker", Fault.DISK_FULL, "checkpoint"),
    ("leaver", Fault.KILL, "after commit"),
    ("node", Fault.KILL, "prepare"),
}


def parameters() -> list[Any]:
    """Make a parameter of each cell; a few are tried in every CI, the others by `make test-faults`."""
    found = []
    for cell in cells():
        often = (cell.role, cell.fault, cell.phase) in IN_EVERY_CI and cell.optimizer == "mirrored"
        found.append(pytest.param(cell, marks=pytest.mark.slow if often else pytest.mark.long, id=str(cell)))
    return found


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with closing(Nursery()) as one:
        yield one


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> dict[str, dict[int, float]]:
    """Losses of a run that nothing happens to, for each optimizer."""
    losses: dict[str, dict[int, float]] = {}
    for optimizer in OPTIMIZERS[:2]:
        with closing(NurseryLab(tmp_path_factory.mktemp(optimizer), nursery, optimizer, steps=100_000)) as lab:
            paced_samples.pace(lab.config.job.run_root, 0.0)
            lab.begin()
            lab.wait_step(KNOWN_STEPS)
            losses[optimizer] = lab.losses()
    return {**losses, "mirrored": losses["distributed"]}


@pytest.mark.parametrize("cell", parameters())
def test_the_run_goes_on(
    cell: Cell,
    tmp_path: Path,
    nursery: Nursery,
    undisturbed: dict[str, dict[int, float]],
    record_property: Callable[[str, Any], None],
) -> None:
    # LS-1, LS-4
    with closing(NurseryLab(tmp_path, nursery, cell.optimizer)) as lab:
        result = try_cell(cell, lab)
        record_property(
            "faults",
            {
                "role": cell.role,
                "fault": cell.fault.value,
                "phase": cell.phase,
                "optimizer": cell.optimizer,
                "detected in, s": result.detected_s,
                "trained again after, s": result.trained_s,
                "steps lost": result.steps_lost,
                "outcome": result.ended[:60] or "goes on",
            },
        )
        assert result.ended == ""
        assert result.steps_lost <= 1 or not cell.loses_no_step
        known = undisturbed[cell.optimizer]
        losses = {step: loss for step, loss in lab.losses().items() if step in known}
        assert losses == {step: pytest.approx(known[step], rel=1e-6) for step in losses}
        assert losses
