"""Answers as they come in: what each of thousands has said, once, in a mapping that is never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

V = TypeVar("V")


class Tally(Mapping[str, V]):
    """Values by name, in the order in which they came. With one more it is another tally, at the cost of that one.

    Tallies that grow out of each other share one dictionary, of which each knows how much is its own. A copy of all
    answers for each of thousands of answers would cost more than all else that is done with them.
    """

    __slots__ = ("_all", "_length")

    def __init__(self, entries: Iterable[tuple[str, V]] = ()) -> None:
        """Make a tally of ``entries``, each of which has a name of its own."""
        self._all: dict[str, tuple[int, V]] = {name: (at, value) for at, (name, value) in enumerate(entries)}
        self._length = len(self._all)

    def plus(self, name: str, value: V) -> Tally[V]:
        """Return a tally that has this value as well.

        Raises:
            ValueError: there is one of that name.
        """
        if name in self:
            raise ValueError(f"{name} has answered already")
        other: Tally[V] = Tally()
        # Another one may have grown out of this one: then what is shared is its.
        other._all = self._all if len(self._all) == self._length else dict(islice(self._all.items(), self._length))
        other._all[name] = (self._length, value)
        other._length = self._length + 1
        return other

    def __getitem__(self, name: str) -> V:
        at, value = self._all[name]
        if at >= self._length:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        found = self._all.get(name)  # type: ignore[call-overload]
        return found is not None and found[0] < self._length

    def __iter__(self) -> Iterator[str]:
        return islice(iter(self._all), self._length)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return repr(dict(self))
