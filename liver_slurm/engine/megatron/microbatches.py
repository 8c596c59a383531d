"""Division of a global batch into microbatches of the data parallel replicas. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A replica's share of one step: ``count`` microbatches, from the ``first``-th of the global batch on.

    ``least``: how many it runs at least.
    """

    first: int
    count: int
    least: int = 1

    @property
    def microbatches(self) -> int:
        """Number of microbatches to run; of those beyond its own all tokens are masked.

        Without them the others would hang: they wait for a replica's gradient buckets, and with expert parallelism for
        its experts in each microbatch.
        """
        return max(self.count, self.least)


def share_of(microbatches: int, dp: int, replica: int, together: bool = False) -> Share:
    """Share of one replica; shares are as even as possible, and the first replicas take one more.

    Args:
        together: replicas need each other in each microbatch, so all run as many.
    """
    base, extra = divmod(microbatches, dp)
    least = max(base + bool(extra), 1) if together else 1
    return Share(replica * base + min(replica, extra), base + (replica < extra), least)
