"""What is made once of an object that is never changed, such as a job file's sections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

V = TypeVar("V")
KEPT = 8
"""Objects whose results are kept: of those that were asked for last."""


class OncePer(Generic[V]):
    """A function of one object whose results are kept for as long as the object is among the last that were given.

    Objects are told apart by identity: a job file cannot be hashed, and to compare two takes longer than to make most
    of what is kept here. What is returned is one and the same object each time; it may be filled in on the way.
    """

    def __init__(self, make: Callable[[Any], V]) -> None:
        """``make``: the function; of what it is given nothing may ever change."""
        self._make = make
        self._kept: list[tuple[object, V]] = []

    def __call__(self, given: object) -> V:
        """Return the result for ``given``."""
        for known, made in self._kept:
            if known is given:
                return made
        made = self._make(given)
        self._kept = [(given, made), *self._kept[: KEPT - 1]]
        return made
