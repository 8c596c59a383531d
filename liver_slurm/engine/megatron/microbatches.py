"""Division of a global batch into microbatches of the data parallel replicas. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from liver_slurm.parallel.layout import Layout


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

        Without them the others would hang: they wait for a replica's gradient buckets, and where experts are divided
        over several replicas for its experts in each microbatch. Interleaved stages, too, take microbatches in rounds
        of as many as they are.
        """
        return max(self.count, self.least)


def share_of(microbatches: int, layout: Layout, replica: int) -> Share:
    """Return the share of one of a layout's dp replicas.

    Shares are as even as possible, and the first replicas take one more.
    """
    base, extra = divmod(microbatches, layout.dp)
    count = base + (replica < extra)
    least = max(base + bool(extra) if layout.experts_need_microbatches else count, 1)
    rounds = layout.pp if layout.vpp > 1 else 1
    return Share(replica * base + min(replica, extra), count, -(-least // rounds) * rounds)
