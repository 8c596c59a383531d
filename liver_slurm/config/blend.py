"""Shares of the data sets of a blend, as whole numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from liver_slurm.config.data import DataSection
from liver_slurm.config.problem import Problem
from liver_slurm.config.validation import DataKey, ValidationSection

FINEST = 1_000_000
"""Samples after which a blend repeats, at most: shares are counted in millionths, if they need it."""


def blend_parts(weights: Sequence[float]) -> list[int]:
    """Return how many samples of each period of a blend are from each data set; the period is their sum.

    The weights' decimals are taken as they are written. Parts are exact where the period is at most :data:`FINEST`;
    otherwise they are rounded to it, by largest remainders.

    Raises:
        ValueError: a weight is too small for a part; says which.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    whole = math.lcm(*(one.denominator for one in exact))
    parts = [int(one * whole) for one in exact]
    divisor = math.gcd(*parts)
    parts = [part // divisor for part in parts]
    total = sum(parts)
    if total <= FINEST:
        return parts
    rounded = [part * FINEST // total for part in parts]
    if 0 in rounded:
        raise ValueError(f"{weights[rounded.index(0)]} is less than a millionth of their sum")
    left = sorted(range(len(parts)), key=lambda one: -(parts[one] * FINEST % total))
    for one in left[: FINEST - sum(rounded)]:
        rounded[one] += 1
    return rounded


def blend_problems(key: DataKey, data: DataSection | ValidationSection) -> Iterator[Problem]:
    """Find what is wrong with a section's weights."""
    if not data.weights:
        return
    if data.provider is not None:
        yield Problem(f"{key}.weights", f"has no use with {key}.provider; allowed: {key}.paths")
    elif len(data.weights) != len(data.paths):
        text = f"has {len(data.weights)} weights; allowed: as many as {key}.paths, which has {len(data.paths)}"
        yield Problem(f"{key}.weights", text)
    else:
        try:
            blend_parts(data.weights)
        except ValueError as error:
            yield Problem(f"{key}.weights", f"{error}; allowed: at least that")
