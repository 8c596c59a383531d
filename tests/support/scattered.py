"""Views whose elements lie wherever in memory, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st
from memory_owner import Recipe

DTYPES = ("float32", "bfloat16", "float16", "float64", "int64")


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...], dtype: str, written: bool = False) -> Recipe:
    """A view of that shape, wherever its elements lie; ``written``: each in a place of its own."""
    least = 1 if written else 0
    steps = tuple(draw(st.integers(least, 3)) for _ in shape)
    return Recipe(dtype, shape, steps, tuple(draw(st.permutations(range(len(shape))))), draw(st.integers(0, 1 << 30)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Recipe, Recipe]:
    """A source, and a target of the same shape and type."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    return draw(layouts(shape, dtype)), draw(layouts(shape, dtype, written=True))
