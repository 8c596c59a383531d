"""How far to look: the nearest window behind which nothing more comes of a decision.

A window that is too short misses what taking costs later; one that is too long adds the noise of later decisions. Let H
be the farthest window that was seen often enough, and h a nearer one. What comes between is an outcome of its own::

    rest(h) = E[gain(H) - gain(h) | take] - E[gain(H) - gain(h) | leave]

The mean of it alone says too little: where taking brings some runs later what it costs others, it is nothing. So the
same is asked of those for whom covariates tell of a gain, against those for whom they tell of a loss, by regressions
that were learned from other runs::

    told(h) = E[sign(expected rest(X)) * rest(h)]

The nearest h counts for which the intervals of both contain 0 and are shorter than a tenth of H; without one, H does.
The choice never looks at what a rule gains, so that it does not choose in favour of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from liver_slurm.advisor import contributions
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.folds import by_group
from liver_slurm.advisor.gate import FEW_COMPLETE, FEW_RUNS
from liver_slurm.advisor.intervals import Estimated
from liver_slurm.advisor.learners import Learners
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

SHARE = 0.1
"""Of the farthest window: what is unsure behind a nearer one must be less."""


@dataclass(frozen=True)
class Looked:
    """One window."""

    window_s: float
    seen: tuple[int, int]
    """Outcomes that were seen where left, and where taken."""
    effect: Estimated | None = None
    """Of taking, within the window; None: too few outcomes, or too few runs."""
    rest: Estimated | None = None
    """Of taking, from there to the farthest window that counts; None: it is that one, or lies behind it."""
    told: Estimated | None = None
    """Of the same, where covariates tell of a gain, and of its opposite where they tell of a loss."""

    def is_enough(self, farthest_s: float) -> bool:
        """Whether nothing comes behind this window, neither in the mean nor where covariates tell."""
        if self.rest is None or self.told is None:
            return False
        (low, high), (least, most) = self.rest.interval(), self.told.interval()
        narrow = max(high - low, most - least) < SHARE * farthest_s
        return narrow and low <= 0.0 <= high and least <= 0.0


@dataclass(frozen=True)
class Chosen:
    """The window that counts."""

    stage: int
    why: str
    looked: tuple[Looked, ...]


def choose(
    table: DecisionTable, windows: Sequence[float], learners: Learners, folds: int, wanted: float | None = None
) -> Chosen:
    """Look at all windows of a table with leave and take, and choose one.

    Args:
        table: with an outcome for each window.
        windows: seconds, ascending.
        learners: of nuisances.
        folds: drawn by run.
        wanted: the window that counts in any case; None: the one that the data choose.

    Raises:
        BadInput: there is no such window, or no outcome was seen for both actions.
    """
    if wanted is not None and wanted not in windows:
        raise BadInput(f"there is no window of {wanted:g} s; there are {', '.join(f'{one:g}' for one in windows)} s")
    last = _farthest(table)
    looked = tuple(_look(table, stage, last, windows, (learners, folds)) for stage in range(len(windows)))
    if wanted is not None:
        return Chosen(list(windows).index(wanted), "it was asked for", looked)
    far = span(windows[last])
    for stage, one in enumerate(looked[:last]):
        if one.rest is not None and one.is_enough(windows[last]):
            low, high = one.rest.interval()
            return Chosen(
                stage,
                f"what taking adds from there to {far}, {low:+.1f} to {high:+.1f} s, cannot be told from nothing",
                looked,
            )
    scarce = " of those that were seen often enough" if last < len(windows) - 1 else ""
    nearer = "; behind each nearer one more comes of it, or it is not sure that nothing does" if last else ""
    return Chosen(last, f"the farthest{scarce}{nearer}", looked)


def span(seconds: float) -> str:
    """Write a window as people say it."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _farthest(table: DecisionTable) -> int:
    """Return the farthest window of which both actions were seen often enough, or at least once."""
    for fewest in (FEW_COMPLETE, 1):
        enough = [stage for stage in range(table.stages) if min(_seen(table, stage)) >= fewest]
        if enough:
            return enough[-1]
    raise BadInput("no outcome was seen for both actions; let runs go on for longer, and collect them again")


def _seen(table: DecisionTable, stage: int) -> tuple[int, int]:
    leave, take = (int((table.seen[:, stage] & (table.actions == arm)).sum()) for arm in (0, 1))
    return leave, take


def _look(table: DecisionTable, stage: int, last: int, windows: Sequence[float], how: tuple[Learners, int]) -> Looked:
    found = Looked(windows[stage], _seen(table, stage))
    if min(found.seen) < FEW_COMPLETE or len(np.unique(table.groups)) < FEW_RUNS:
        return found
    found = replace(found, effect=_terms(table.until(stage), how).effect())
    if stage >= last:
        return found
    whole = table.until(last)
    outcomes = whole.outcomes.copy()
    outcomes[:, last] -= outcomes[:, stage]
    terms = _terms(replace(whole, outcomes=outcomes), how)
    expected = np.sign(terms.plug_in[:, 1] - terms.plug_in[:, 0])
    return replace(found, rest=terms.effect(), told=terms.value(np.column_stack([-expected, expected])))


def _terms(table: DecisionTable, how: tuple[Learners, int]) -> Contributions:
    learners, folds = how
    return contributions.here(table, fit_nuisances(table, learners, by_group(table.groups, folds)))
