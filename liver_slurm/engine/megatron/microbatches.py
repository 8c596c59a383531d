"""Division of a global batch into microbatches of the data parallel replicas. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A replica's share of one step: ``count`` microbatches, from the ``first``-th of the global batch on."""

    first: int
    count: int

    @property
    def microbatches(self) -> int:
        """Number of microbatches to run; a replica that has none runs one whose tokens are all masked.

        Without it the others would hang, because they wait for its gradient buckets.
        """
        return max(self.count, 1)


def share_of(microbatches: int, dp: int, replica: int) -> Share:
    """Share of one replica; shares are as even as possible, and the first replicas take one more."""
    base, extra = divmod(microbatches, dp)
    return Share(first=replica * base + min(replica, extra), count=base + (replica < extra))
