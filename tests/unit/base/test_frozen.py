"""Another frozen dataclass with some fields changed."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.frozen import replace


@dataclasses.dataclass(frozen=True)
class Plain:
    one: int
    two: str = "b"


@dataclasses.dataclass(frozen=True)
class Derived:
    length: int
    double: int = 0

    def __post_init__(self) -> None:
        if not self.double:
            object.__setattr__(self, "double", 2 * self.length)


@given(st.integers(), st.fixed_dictionaries({}, optional={"one": st.integers(), "two": st.text()}))
def test_it_is_what_the_library_makes(one: int, changes: dict[str, object]) -> None:
    made = Plain(one)
    assert replace(made, **changes) == dataclasses.replace(made, **changes)  # type: ignore[arg-type]
    assert made == Plain(one), "the one that it came from stays as it is"


def test_what_is_derived_is_derived_again() -> None:
    assert replace(Derived(2), length=3, double=0) == Derived(3)
    assert replace(Derived(2), length=3) == dataclasses.replace(Derived(2), length=3)
