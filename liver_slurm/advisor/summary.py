"""What a model says for people and pictures: what simple policies are worth, and where both actions were tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.intervals import Estimated
from liver_slurm.advisor.model import Bin, Figure
from liver_slurm.advisor.rows import Row
from liver_slurm.advisor.table import DecisionTable

TAKE, LEAVE, LEARNED = "take always", "leave always", "the learned rule"
COST_AWARE = "cost-aware"
"""The policy of this name as far as an offer's features tell it: take what is expected to save more than it costs."""
BINS = 12
ENDS = (2.0, 98.0)
"""Percentiles of expected gains between which bins have equal widths; the first and the last have what is outside."""


def figure(estimated: Estimated | None) -> Figure | None:
    """Return an estimate with its interval, if there is one."""
    if estimated is None or not np.isfinite(estimated.interval()).all():
        return None
    low, high = estimated.interval()
    return Figure(value=estimated.value, low=low, high=high)


def simple_rules(rows: Sequence[Row]) -> dict[str, Array]:
    """Return what policies take of these offers that nothing has to be learned for, by name: [rows] each."""
    found = {TAKE: np.ones(len(rows)), LEAVE: np.zeros(len(rows))}
    pairs = [(row.features.get("saved_s"), row.features.get("cost_s")) for row in rows]
    if any(saved is not None and cost is not None for saved, cost in pairs):
        found[COST_AWARE] = np.array([float(saved is None or cost is None or saved > cost) for saved, cost in pairs])
    return found


def overlap(table: DecisionTable, here: Contributions, there: Contributions | None) -> tuple[Bin, ...]:
    """Count decisions by the gain that the regressions expect of taking, and which of both was done.

    Args:
        table: leave and take.
        here: of its decisions.
        there: of the target's offers too; None: there is no target.
    """
    expected = here.plug_in[:, 1] - here.plug_in[:, 0]
    elsewhere = np.zeros(0)
    if there is not None:
        elsewhere = (there.plug_in[:, 1] - there.plug_in[:, 0])[there.counted > 0.0]
    low, high = np.percentile(np.concatenate([expected, elsewhere]), ENDS)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)

    def counted(gains: Array) -> Array:
        return np.histogram(np.clip(gains, edges[0], edges[-1]), edges)[0].astype(np.float64)

    left, taken = (counted(expected[table.actions == arm]) for arm in (0, 1))
    shares = counted(elsewhere) / max(1, len(elsewhere))
    return tuple(
        Bin(
            low=float(edges[at]),
            high=float(edges[at + 1]),
            left=int(left[at]),
            taken=int(taken[at]),
            there=float(share),
        )
        for at, share in enumerate(shares)
    )
