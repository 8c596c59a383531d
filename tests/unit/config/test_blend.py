"""Weights as whole numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.config.blend import FINEST, blend_parts, blend_problems
from liver_slurm.config.data import DataSection


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([0.7, 0.3], [7, 3]),
        ([70.0, 30.0], [7, 3]),
        ([5.0], [1]),
        ([0.333333333] * 3, [1, 1, 1]),
        ([1e9, 2e3], [500_000, 1]),
        ([1e9, 2001.0], [999_998, 2]),
        ([1234567.0, 7654321.0], [138_889, 861_111]),
    ],
)
def test_parts_are_the_smallest_whole_numbers_or_millionths(weights: list[float], parts: list[int]) -> None:
    assert blend_parts(weights) == parts


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=20))
def test_parts_are_the_weights_to_a_millionth(weights: list[float]) -> None:
    parts = blend_parts(weights)
    assert sum(parts) <= FINEST
    total = sum(map(Fraction, map(str, weights)))
    for weight, part in zip(weights, parts, strict=True):
        assert abs(Fraction(part, sum(parts)) - Fraction(str(weight)) / total) < Fraction(1, FINEST)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (DataSection(paths=("/a", "/b"), weights=(1.0, 2.0)), None),
        (DataSection(paths=("/a",)), None),
        (DataSection(paths=("/a",), weights=(1.0, 2.0)), "has 2 weights; allowed: as many as data.paths, which has 1"),
        (DataSection(weights=(1.0,), provider="a:b"), "has no use with data.provider"),
        (DataSection(paths=("/a", "/b"), weights=(1.0, 1e-7)), "1e-07 is less than a millionth of their sum"),
    ],
)
def test_weights_that_make_no_blend_are_one_line(section: DataSection, expected: str | None) -> None:
    found = [problem.text for problem in blend_problems("data", section)]
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]
