"""Setbacks: worlds that broke one after the other without training a step further. Pure: decisions and their reasons.

A node that dies is no reason to stop. What fails again at the same step in the next world, and in the one after it,
would fail for ever: a line of data that a worker cannot read, an operation that runs out of memory there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from liver_slurm.base.frozen import replace

MOST_ALIKE = 3
"""Worlds in a row of which a worker said the same as it died at the same step, until the run ends."""
MOST = 5
"""Worlds in a row that broke at the same step, in whatever way, until the run ends."""
_CHANGES = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""What differs between two times of the same failure: ports, addresses, ranks."""


@dataclass(frozen=True)
class Breakdown:
    """How a world broke."""

    generation: int
    step: int
    """Completed steps by then, as far as is known."""
    names: tuple[str, ...]
    """Workers that were lost with it; none: a collective failed, and all are there."""
    reason: str
    said: bool = False
    """The first of them said so itself."""

    def is_like(self, other: Breakdown) -> bool:
        """Return whether another world broke for the same reason."""
        return self.said == other.said and _CHANGES.sub("", self.reason) == _CHANGES.sub("", other.reason)


@dataclass(frozen=True)
class Setback:
    """A step that training has not come beyond, and how often that was tried."""

    last: Breakdown
    times: int = 1
    """Worlds in a row that broke there."""
    alike: int = 1
    """Of these, the last ones that broke in the same way."""
    names: tuple[str, ...] = ()
    """All workers that were lost there."""
    before: Setback | None = None
    """An earlier step that worlds did not come beyond on the way back to this one; None: the last one came here."""

    def why_stop(self, steps: int) -> str | None:
        """Say why another try is in vain, with what and where, in a run of so many steps; None: it may help."""
        if self.before is not None:
            return self.before.why_stop(steps)
        last = self.last
        if not (last.said and self.alike >= MOST_ALIKE) and self.times < MOST:
            return None
        who = f" at {', '.join(self.names)}" if self.names else ""
        when = "each time" if self.alike == self.times else "the last time"
        what = f"step {last.step + 1}" if last.step < steps else f"what follows step {steps}, the last one,"
        return f"{what} has failed {self.times} times in a row{who}, {when} with «{last.reason}»"


def after(before: Setback | None, broken: Breakdown) -> Setback:
    """Return what is known once another world is broken; the same one may be told again.

    A world that broke earlier, as it was on its way back from a checkpoint, says nothing about the step that the ones
    before it did not come beyond. It is counted for itself, until one comes back there.
    """
    if before is None or broken.step > before.last.step:
        return Setback(broken, names=broken.names)
    if broken.generation == before.last.generation:
        return before
    if broken.step < before.last.step:
        return replace(before, before=after(before.before, broken))
    alike = before.alike + 1 if broken.is_like(before.last) else 1
    names = tuple(dict.fromkeys((*before.names, *broken.names)))
    return replace(before, last=broken, times=before.times + 1, alike=alike, names=names, before=None)
