"""Reading another process's memory over a connection: a thread of the owner's answers, on this machine or another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from liver_slurm.reshard.tensors import flat_boxes
from liver_slurm.transfer.one_sided.description import Reader, View, dtype_of, view_of
from liver_slurm.transfer.one_sided.line import COUNTER, ITEM_FIELDS, LOG, MOST_ITEMS, Items, Line
from liver_slurm.transfer.one_sided.memory_ranges import ranges, single
from liver_slurm.transfer.one_sided.staging import Staging


class NetworkReader(Reader):
    """Reads over a connection.

    In host memory the kernel writes what arrives where it belongs. For a card it passes through pinned memory.
    """

    def __init__(self, line: Line, device: torch.device, staging: Staging) -> None:
        """
        Args:
            staging: that pinned memory for a card comes from.
        """
        self._line, self._device, self._staging = line, device, staging
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned: torch.Tensor | None = None

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                self._copy_to_card(targets, sources)
            return
        pairs = [pair for pair in zip(targets, sources, strict=True) if pair[0].numel()]
        for begin in range(0, len(pairs), MOST_ITEMS):
            some = pairs[begin : begin + MOST_ITEMS]
            items = np.array([(view.number, view.first, target.numel()) for target, view in some], dtype=np.uint64)
            self._line.read(items, np.concatenate([ranges(view_of(target)) for target, _ in some]))

    def fetch(self, sources: Sequence[View]) -> list[torch.Tensor]:
        targets = [torch.empty(source.shape, dtype=dtype_of(source.dtype), device=self._device) for source in sources]
        self.copy(targets, sources)
        return targets

    def stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def counter(self) -> int:
        return self._number(COUNTER)

    def stands(self, version: int) -> bool:
        """Return whether they are: the owner keeps copies of them until the next update but one at most."""
        return self._number(LOG) == 2 * version

    def close(self) -> None:
        """Do nothing: the connection is closed with all others."""
        self._pinned = None

    def _number(self, number: int) -> int:
        items = np.array([(number, 0, 1)], dtype=np.uint64)
        word = torch.empty(1, dtype=torch.int64)
        self._line.read(items, single(word.data_ptr(), word.nbytes))
        return int(word)

    def _copy_to_card(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        """Copy in rounds that fill the pinned memory: one question each, then copies to where the boxes lie."""
        if self._pinned is None:
            self._pinned = self._staging.pinned()
        filled = 0
        items: list[tuple[int, int, int]] = []
        places: list[tuple[torch.Tensor, int]] = []
        for target, view, first, count in _pieces(targets, sources, self._pinned.numel()):
            if filled + count * view.itemsize > self._pinned.numel() or len(items) == MOST_ITEMS:
                self._fill(items, places, filled)
                filled, items, places = 0, [], []
            items.append((view.number, view.first + first, count))
            for offset, shape in flat_boxes(tuple(target.shape), first, first + count):
                box = target[tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))]
                places.append((box, filled))
                filled += box.nbytes
        self._fill(items, places, filled)

    def _fill(
        self, items: Sequence[tuple[int, int, int]], places: Sequence[tuple[torch.Tensor, int]], nbytes: int
    ) -> None:
        if not items:
            return
        assert self._pinned is not None
        self._line.read(np.array(items, dtype=np.uint64), single(self._pinned.data_ptr(), nbytes))
        for box, at in places:
            arrived = self._pinned[at : at + box.nbytes]
            if at % box.element_size():
                arrived = arrived.clone()  # of another dtype than what lies before it
            box.copy_(arrived.view(box.dtype).view(box.shape), non_blocking=True)
        self._stream.synchronize()


def _pieces(
    targets: Sequence[torch.Tensor], sources: Sequence[View], most: int
) -> Iterator[tuple[torch.Tensor, View, int, int]]:
    """Cut into ranges of at most so many bytes: (target, its source, first element, elements)."""
    for target, view in zip(targets, sources, strict=True):
        step = max(1, most // view.itemsize)
        for first in range(0, target.numel(), step):
            yield target, view, first, min(step, target.numel() - first)


def decode_items(data: bytes) -> Items:
    """Items as they come over the line: [n, :data:`~liver_slurm.transfer.one_sided.line.ITEM_FIELDS`]."""
    return np.frombuffer(data, dtype=np.uint64).reshape(-1, ITEM_FIELDS)
