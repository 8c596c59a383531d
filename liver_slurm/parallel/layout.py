"""A layout: the sizes of the tensor, pipeline and data parallel dimensions, and where a rank sits in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

_PATTERN = re.compile(r"tp([1-9]\d*)pp([1-9]\d*)dp([1-9]\d*)")


class Coordinates(NamedTuple):
    """A rank's place in each dimension of its layout."""

    tp: int
    pp: int
    dp: int


@dataclass(frozen=True, order=True)
class Layout:
    """(tp, pp, dp), written ``tp2pp1dp2``. Ranks are numbered as Megatron does: tp fastest, then dp, then pp."""

    tp: int
    pp: int
    dp: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read ``tp2pp1dp2``.

        Raises:
            ValueError: the text is not of that form.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a layout; write one as tp2pp1dp2")
        return cls(*(int(part) for part in match.groups()))

    @property
    def size(self) -> int:
        """How many ranks the layout has."""
        return self.tp * self.pp * self.dp

    def coordinates(self, rank: int) -> Coordinates:
        """Where ``rank`` sits."""
        return Coordinates(tp=rank % self.tp, dp=rank // self.tp % self.dp, pp=rank // (self.tp * self.dp))

    def rank(self, tp: int, pp: int, dp: int) -> int:
        """The rank at these coordinates; inverse of :meth:`coordinates`."""
        return tp + self.tp * (dp + self.dp * pp)

    def __str__(self) -> str:
        return f"tp{self.tp}pp{self.pp}dp{self.dp}"
