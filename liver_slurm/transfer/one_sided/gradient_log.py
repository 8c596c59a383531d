"""The gradients of an owner's last update, kept for receivers that are behind: the log of its log shipping.

Gradients are zeroed when the next step begins. A receiver that cannot read them until then, over a slow link, reads a
copy of them, which lasts until the next update: who has not read it by then reads state again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from typing import Any

import torch

from liver_slurm.transfer.cuda_stream import mark
from liver_slurm.transfer.shared_box import SharedBox

_TOGETHER = 8
"""Boxes whose gradients one thread copies after the other: it costs training's thread more to ask than to copy one."""


class GradientLog:
    """Training's thread writes it, threads that answer receivers read it."""

    def __init__(
        self,
        boxes: Sequence[SharedBox],
        room: int | None,
        counter: torch.Tensor,
        device: torch.device,
        pool: Executor | None,
    ) -> None:
        """
        Args:
            boxes: whose gradients may be asked for, the same object for all who ask.
            room: bytes that copies may take; None: as many as there are.
            counter: int64, [1], in host memory: twice the version of the gradients that are here; one more while they
                are replaced by the next one's.
            pool: what copies, beside the update, which only reads gradients; None: the card's own stream does.
        """
        self._counter, self._pool, self._device = counter, pool, device
        self._places: dict[int, tuple[int, int]] = {}
        used = 0
        for box in {id(box): box for box in boxes}.values():
            size = box.gradient.nbytes if box.gradient is not None else 0
            if room is None or used + size <= room:
                self._places[id(box)] = (used, size)
                used += size
        self.nbytes = used
        # Zeroed so that its pages exist before training's thread writes there.
        self._copies = torch.empty(used, dtype=torch.uint8, pin_memory=device.type == "cuda").zero_()
        self._staged: set[int] = set()
        self._copying: list[Future[None]] = []
        self._copied: Any = None

    def holds(self, boxes: Sequence[SharedBox]) -> int:
        """Return how many of these boxes, from the first on, have a place, or no gradient."""
        return next((n for n, box in enumerate(boxes) if id(box) not in self._places), len(boxes))

    def keep(self, version: int, boxes: Sequence[SharedBox]) -> None:
        """Copy the gradients of the update to ``version``, which begins; boxes without a place are left out."""
        self.wait()
        self._counter.fill_(2 * version - 1)
        kept = [box for box in {id(box): box for box in boxes}.values() if box.gradient is not None]
        kept = [box for box in kept if id(box) in self._places]
        self._staged = {id(box) for box in kept}
        if self._pool is None:
            self._copy(kept)
            self._copied = mark(self._device)
        else:
            self._copying = [
                self._pool.submit(self._copy, kept[begin : begin + _TOGETHER])
                for begin in range(0, len(kept), _TOGETHER)
            ]
        self._counter.fill_(2 * version)

    def stand(self, version: int) -> None:
        """Gradients of the update to ``version`` stay where they are: no step follows."""
        self.wait()
        self._counter.fill_(2 * version - 1)
        self._staged = set()
        self._counter.fill_(2 * version)

    def wait(self) -> None:
        """Wait until what is to be kept is copied, and gradients may be zeroed."""
        wait(self._copying)

    def gradient(self, box: SharedBox) -> torch.Tensor:
        """Return where the last update's gradient of a box is to be read."""
        assert box.gradient is not None
        if id(box) not in self._staged:
            return box.gradient
        for copying in self._copying:
            copying.result()
        if self._copied is not None:
            self._copied.synchronize()
        return self._copy_of(box)

    def release(self) -> None:
        """Give the memory back; nobody reads any more."""
        self.wait()
        self._staged, self._copies = set(), torch.empty(0, dtype=torch.uint8)

    def _copy_of(self, box: SharedBox) -> torch.Tensor:
        assert box.gradient is not None
        at, size = self._places[id(box)]
        return self._copies[at : at + size].view(box.gradient.dtype).view(box.gradient.shape)

    def _copy(self, boxes: Sequence[SharedBox]) -> None:
        with torch.no_grad():
            for box in boxes:
                assert box.gradient is not None
                self._copy_of(box).copy_(box.gradient, non_blocking=self._pool is None)
