"""How far to look: the nearest window behind which nothing more comes of a decision.

A window that is too short misses what taking costs later; one that is too long adds the noise of later decisions. Let H
be the farthest window that was seen often enough, h a nearer one, and g one that is farther than h, up to H. What comes
between h and g is an outcome of its own::

    rest = E[gain(g) - gain(h) | take] - E[gain(g) - gain(h) | leave]

The mean of it alone says too little: where taking brings some runs later what it costs others, it is nothing. So the
same is asked of those for whom covariates tell of a gain, against those for whom they tell of a loss, by regressions
that were learned from other runs::

    told = E[sign(expected rest(X)) * rest]

The nearest h counts at whose end nine of ten nodes are gone, as before that a decision is not over, and for which, with
each g, the intervals of both contain 0 and are shorter than a tenth of H; without one, H does. Nearer g are asked, too,
as what comes until then is known better. The choice never looks at what a rule gains, so that it does not choose in
favour of one.
"""

from __future__ import annotations

import math
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

NINE_OF_TEN = math.log(10.0) / math.log(2.0)
SHARE = 0.1
"""Of the farthest window: what is unsure behind a nearer one must be less."""


@dataclass(frozen=True)
class Behind:
    """What taking gains between the ends of two windows."""

    rest: Estimated
    """In the mean."""
    told: Estimated
    """Where covariates tell of a gain; and its opposite where they tell of a loss."""

    def is_nothing(self, farthest_s: float) -> bool:
        """Return whether both cannot be told from nothing, and are known well enough for that to mean something."""
        (low, high), (least, most) = self.rest.interval(), self.told.interval()
        narrow = max(high - low, most - least) < SHARE * farthest_s
        return narrow and low <= 0.0 <= high and least <= 0.0


@dataclass(frozen=True)
class Looked:
    """One window."""

    window_s: float
    seen: tuple[int, int]
    """Outcomes that were seen where left, and where taken."""
    effect: Estimated | None = None
    """Of taking, within the window; None: too few outcomes, or too few runs."""
    behind: tuple[Behind, ...] = ()
    """What comes of it until each farther window that was seen often enough."""

    def is_enough(self, farthest_s: float) -> bool:
        """Return whether nothing comes behind this window, as far as can be told."""
        return bool(self.behind) and all(one.is_nothing(farthest_s) for one in self.behind)


@dataclass(frozen=True)
class Chosen:
    """The window that counts."""

    stage: int
    why: str
    looked: tuple[Looked, ...]


def choose(
    table: DecisionTable,
    windows: Sequence[float],
    learners: Learners,
    folds: int,
    *,
    wanted: float | None = None,
    life_s: float = 0.0,
) -> Chosen:
    """Look at all windows of a table with leave and take, and choose one.

    Args:
        table: with an outcome for each window.
        windows: seconds, ascending.
        learners: of nuisances.
        folds: drawn by run.
        wanted: the window that counts in any case; None: the one that the data choose.
        life_s: median life of nodes; 0.0: not known. Of lives that end at a constant rate, nine of ten have ended after
            :data:`NINE_OF_TEN` times that.

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
        if one.window_s >= NINE_OF_TEN * life_s and one.is_enough(windows[last]):
            low, high = one.behind[-1].rest.interval()
            return Chosen(
                stage,
                f"what taking adds from there to {far}, {low:+.1f} to {high:+.1f} s, cannot be told from nothing",
                looked,
            )
    if all(one.effect is None for one in looked):
        return Chosen(last, "the farthest, as too few were seen to compare windows", looked)
    scarce = " of those that were seen often enough" if last < len(windows) - 1 else ""
    nearer = "; nearer ones end before nodes go, or more comes of it behind them, or may" if last else ""
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
    behind = (_behind(table, stage, later, how) for later in range(stage + 1, last + 1))
    return replace(found, behind=tuple(behind))


def _behind(table: DecisionTable, stage: int, later: int, how: tuple[Learners, int]) -> Behind:
    whole = table.until(later)
    outcomes = whole.outcomes.copy()
    outcomes[:, later] -= outcomes[:, stage]
    terms = _terms(replace(whole, outcomes=outcomes), how)
    expected = np.sign(terms.plug_in[:, 1] - terms.plug_in[:, 0])
    return Behind(terms.effect(), terms.value(np.column_stack([-expected, expected])))


def _terms(table: DecisionTable, how: tuple[Learners, int]) -> Contributions:
    learners, folds = how
    return contributions.here(table, fit_nuisances(table, learners, by_group(table.groups, folds)))
