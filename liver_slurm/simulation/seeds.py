"""One simulation over several seeds: means of all cases, and intervals in which the true means lie. Pure.

A seed decides what is drawn by lot: which nodes a trace of numbers loses, sudden deaths, a generated load, waits in the
queue. Each interval is Student's, in which the mean over all seeds lies with a probability of 95 %::

    mean ± t(0.975; n - 1) · s / √n
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from liver_slurm.config.schema import JobConfig
from liver_slurm.simulation.cases import Case, compared_cases, elastic_cases
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.setting import Setting

CONFIDENCE = 0.95
FIGURES = ("ettr", "capacity_goodput", "tokens", "of_bound", "changes", "paused_s", "lost_s")
"""Figures of a case that have an interval."""
# fmt: off
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
)
# fmt: on
"""Student's t at 0.975 for 1, 2, … degrees of freedom; no dependency of ours has it."""


def simulate(
    config: JobConfig,
    settings: Sequence[Setting],
    costs: Costs,
    policies: Sequence[str],
    modes: Sequence[str],
    group: int = 1,
    tell: Callable[[int], None] = lambda done: None,
    log: Path | None = None,
) -> list[Case]:
    """Simulate all cases in each setting, the bound last; means where there are several.

    Args:
        config: the job.
        settings: one for each seed.
        costs: what things take.
        policies: as ``standby.policy``.
        modes: as ``stream.mode``.
        group: workers for which one stands, see :mod:`liver_slurm.simulation.coarse`.
        tell: is told how many settings are done.
        log: folder for the event logs of all runs; None: none is written.

    Raises:
        BadInput: there is no such policy, or the job has no standby jobs.
    """
    found = []
    for done, setting in enumerate(settings, 1):
        ours = elastic_cases(config, setting, costs, policies, modes, group, log)
        found.append(_with_shares(ours + compared_cases(config, setting, costs)))
        tell(done)
    return [mean_case(cases) for cases in zip(*found, strict=True)]


def _with_shares(cases: Sequence[Case]) -> list[Case]:
    """Say what share of the bound's tokens each case has; the bound is the last."""
    bound = cases[-1].tokens or 1.0
    return [replace(case, of_bound=case.tokens / bound) for case in cases]


def mean_case(cases: Sequence[Case]) -> Case:
    """Return the mean of one case's seeds, with intervals; one seed stays as it is."""
    if len(cases) == 1:
        return cases[0]
    ends = list(dict.fromkeys(case.end for case in cases if case.end))
    values = {name: [float(getattr(case, name)) for case in cases] for name in FIGURES}
    means: dict[str, Any] = {name: statistics.fmean(found) for name, found in values.items()}
    intervals = {name: interval(found) for name, found in values.items()}
    return replace(cases[0], **means, seeds=len(cases), intervals=intervals, end="; ".join(ends))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the mean of several values, low end first."""
    mean = statistics.fmean(values)
    half = student(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def student(freedom: int) -> float:
    """Return Student's t for intervals of :data:`CONFIDENCE`, by the first terms of its series where there are many."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = statistics.NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
