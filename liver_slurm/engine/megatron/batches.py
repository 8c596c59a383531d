"""A replica's part of each step's batch: beside a card's work it is read one step ahead, into pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import torch

from liver_slurm.config.batch_sizes import batch_size, samples_before
from liver_slurm.config.schema import TrainSection
from liver_slurm.engine.api import Samples
from liver_slurm.engine.megatron.microbatches import Share, share_of
from liver_slurm.parallel.layout import Layout


class Batches:
    """Reads one replica's part; the training thread of its shard calls it."""

    def __init__(self, train: TrainSection, layout: Layout, replica: int, device: torch.device) -> None:
        """``replica``: which of the layout's dp replicas this is."""
        self._train, self._layout, self._replica, self._device = train, layout, replica, device
        self.ahead = device.type == "cuda"
        """Read the next step's samples while a step is computed. A CPU's cores are busy with the step itself."""
        self._next: tuple[Samples, int, Future[torch.Tensor]] | None = None

    def share(self, step: int) -> Share:
        """Return the replica's share of a step."""
        return self.share_of(batch_size(self._train, step))

    def share_of(self, samples: int) -> Share:
        """Return the replica's share of a batch of so many samples."""
        return share_of(samples // self._train.micro_batch_size, self._layout, self._replica)

    def tokens(self, samples: Samples, step: int) -> Iterator[torch.Tensor]:
        """Return the tokens of each microbatch of a step, int64, [micro batch size, seq_length + 1], on the device.

        A replica without a microbatch gets one, whose tokens are to count for nothing.

        Raises:
            Exception: what the source of samples raised for this step.
        """
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] is samples and waiting[1] == step:
            read = waiting[2].result()
        elif self.ahead:
            read = _reader().submit(self._read_step, samples, step).result()
        else:
            read = self._read_step(samples, step)
        if self.ahead and step + 1 < self._train.steps:
            self._next = samples, step + 1, _reader().submit(self._read_step, samples, step + 1)
        return self._parts(read)

    def others(self, samples: Samples, first: int, share: Share) -> Iterator[torch.Tensor]:
        """Return the same of a batch that begins with sample ``first`` and belongs to no step.

        Nothing is read ahead.
        """
        return self._parts(self._read(samples, first, share))

    def _parts(self, read: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in read.split(self._train.micro_batch_size):
            yield part.to(self._device, non_blocking=True)

    def first_of(self, step: int) -> int:
        """Number of the first sample that this replica reads for a step."""
        return self._first(samples_before(self._train, step), self.share(step))

    def _first(self, first: int, share: Share) -> int:
        return first + (share.first if share.count else 0) * self._train.micro_batch_size

    def _read_step(self, samples: Samples, step: int) -> torch.Tensor:
        return self._read(samples, samples_before(self._train, step), self.share(step))

    def _read(self, samples: Samples, first: int, share: Share) -> torch.Tensor:
        size = self._train.micro_batch_size
        read = torch.from_numpy(samples.batch(self._first(first, share), share.microbatches * size))
        # A copy from other memory to a card waits for all that was launched before it.
        return read.pin_memory() if self._device.type == "cuda" else read


@cache
def _reader() -> ThreadPoolExecutor:
    """Return the process's one thread that reads ahead: a source of samples need not be safe to be called from two."""
    # By how its name begins, `bench overhead` counts a thread's time as training's.
    return ThreadPoolExecutor(1, thread_name_prefix="pt_data")
