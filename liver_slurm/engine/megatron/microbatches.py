"""Which samples of a global batch each data parallel replica takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from liver_slurm.config.schema import TrainSection


@dataclass(frozen=True)
class Share:
    """A replica's part of one step: ``count`` microbatches, from the ``first``-th of the global batch on."""

    first: int
    count: int

    @property
    def microbatches(self) -> int:
        """Microbatches to run: a replica with none of its own runs one in which no token counts.

        Leaving it out would hang the others, who wait for its gradient buckets.
        """
        return max(self.count, 1)


def share(train: TrainSection, dp: int, replica: int) -> Share:
    """Replica ``replica``'s share: as even as possible, the first replicas take one more."""
    base, extra = divmod(train.global_batch_size // train.micro_batch_size, dp)
    return Share(first=replica * base + min(replica, extra), count=base + (replica < extra))
