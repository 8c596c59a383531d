"""Figures of reconfigurations, pure: from moments and step times to seconds lost, parts, medians and ratios.

Seconds lost by a reconfiguration, of whatever way::

    max((end of the first step after it - end of the last step before it) - a usual step of the world after it,
        the time that training is known to have stood still)
    + what mode overlap held up the steps before the cutover

so that the step which is trained anyway is not counted, and a slow first step is. A usual step is the median of the
later steps' intervals in that world. On busy cores step times vary by more than our pauses last; hence the second line,
which comes from the workers' own clocks and keeps chance from making a pause shorter than it was. Of several
reconfigurations each term is the median of its own: the greater of two in each would count chance where it makes a step
longer, and not where it makes one shorter.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reconfigured:
    """One reconfiguration, as it was measured."""

    interval_s: float
    """From the end of the last step before to the end of the first step after."""
    usual_s: float
    """A usual step of the world after."""
    parts: dict[str, float]
    """Seconds, and bytes, that say where the time went."""
    stood_s: float = 0.0
    """Seconds that training stood still, as the workers measured it; 0.0: not known."""
    before_s: float = 0.0
    """Seconds that steps before the cutover were held up for it."""

    @property
    def lost_s(self) -> float:
        """Seconds lost, as defined above."""
        return _lost(self.interval_s - self.usual_s, self.stood_s, self.before_s)


def _lost(longer_s: float, stood_s: float, before_s: float) -> float:
    return max(longer_s, stood_s, 0.0) + before_s


def usual(ends: Sequence[float]) -> float:
    """Return the median interval between the ends of consecutive steps.

    The first of them is left out: it is the world's first step.
    """
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))


def between(moments: Mapping[str, float]) -> dict[str, float]:
    """Return the durations from consecutive moments: each key names what ended then.

    The first only says where it all begins.
    """
    names, times = list(moments), list(moments.values())
    return {name: later - earlier for name, (earlier, later) in zip(names[1:], itertools.pairwise(times), strict=True)}


def middle(measured: Sequence[Reconfigured]) -> dict[str, Any]:
    """Return the median of several: ``lost_s, interval_s, step_s`` and ``parts``, each a median of its own."""
    names = dict.fromkeys(name for one in measured for name in one.parts)
    return {
        "lost_s": _lost(
            statistics.median(one.interval_s - one.usual_s for one in measured),
            statistics.median(one.stood_s for one in measured),
            statistics.median(one.before_s for one in measured),
        ),
        "interval_s": statistics.median(one.interval_s for one in measured),
        "step_s": statistics.median(one.usual_s for one in measured),
        "parts": {name: statistics.median(one.parts[name] for one in measured if name in one.parts) for name in names},
        "each_s": [one.lost_s for one in measured],
    }


def ratio(baseline: float | None, ours: float | None) -> float | None:
    """Return how many times faster ours is.

    None where one is missing, or where ours lost nothing that could be measured.
    """
    if baseline is None or not ours:
        return None
    return baseline / ours


def median_of(cases: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the median of what the cases have under ``key``; None: none has."""
    values = [case[key] for case in cases if case.get(key) is not None]
    return statistics.median(values) if values else None
