"""A table that is never changed: another one with one entry more, less or different costs little, however large."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from itertools import zip_longest
from typing import TypeVar

V = TypeVar("V")
SHARD = 64
"""Entries that are copied for one that is different."""


class Table(Mapping[str, V]):
    """Values by name, in the order in which the names came; shards of it are shared with the tables it came from.

    A worker's heartbeat makes another table of all workers: a copy of thousands of entries for each of thousands of
    heartbeats a second is more than one core can do.
    """

    __slots__ = ("_shards", "_where")

    def __init__(self, entries: Iterable[tuple[str, V]] = ()) -> None:
        """Make a table of ``entries``, each of which has a name of its own."""
        self._shards: list[dict[str, V]] = []
        self._where: dict[str, int] = {}
        for name, value in entries:
            self._append(name, value)

    @classmethod
    def of(cls, entries: Mapping[str, V]) -> Table[V]:
        """Return ``entries`` as a table; itself, if it is one."""
        return entries if isinstance(entries, Table) else cls(entries.items())

    def put(self, name: str, value: V) -> Table[V]:
        """Return a table that has this value under ``name``: in its place, or as the last one."""
        other: Table[V] = Table()
        other._shards, other._where = self._shards.copy(), self._where
        number = self._where.get(name)
        if number is not None:
            other._shards[number] = {**self._shards[number], name: value}
            return other
        other._where = self._where.copy()
        if other._shards:
            other._shards[-1] = other._shards[-1].copy()
        other._append(name, value)
        return other

    def without(self, name: str) -> Table[V]:
        """Return a table without ``name``."""
        number = self._where.get(name)
        if number is None:
            return self
        if len(self._shards) > 2 * (1 + len(self._where) // SHARD):  # most of them are nearly empty by now
            return Table(item for item in self.items() if item[0] != name)
        other: Table[V] = Table()
        other._shards, other._where = self._shards.copy(), self._where.copy()
        other._shards[number] = {key: value for key, value in self._shards[number].items() if key != name}
        del other._where[name]
        return other

    def _append(self, name: str, value: V) -> None:
        if not self._shards or len(self._shards[-1]) >= SHARD:
            self._shards.append({})
        self._shards[-1][name] = value
        self._where[name] = len(self._shards) - 1

    def values(self) -> ValuesView[V]:
        """Return the values, in the order of the names."""
        return _Values(self)

    def items(self) -> ItemsView[str, V]:
        """Return the names and values, in the order of the names."""
        return _Items(self)

    def differing(self, other: Table[V]) -> Iterator[tuple[str, V]]:
        """Yield the names and values that ``other``, which this table came from, has not under the same name; perhaps
        more."""
        nothing: dict[str, V] = {}
        for shard, before in zip_longest(self._shards, other.shards()[: len(self._shards)], fillvalue=nothing):
            if shard is not before:
                for name, value in shard.items():
                    if before.get(name) is not value:
                        yield name, value

    def shards(self) -> list[dict[str, V]]:
        """Return the entries in pieces, in their order."""
        return self._shards

    def __getitem__(self, name: str) -> V:
        return self._shards[self._where[name]][name]

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        for shard in self._shards:
            yield from shard

    def __len__(self) -> int:
        return len(self._where)

    def __repr__(self) -> str:
        return repr(dict(self))


class _Values(ValuesView[V]):
    def __init__(self, table: Table[V]) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[V]:
        for shard in self._table.shards():
            yield from shard.values()


class _Items(ItemsView[str, V]):
    def __init__(self, table: Table[V]) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[str, V]]:
        for shard in self._table.shards():
            yield from shard.items()
