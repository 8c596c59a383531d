"""Host memory for snapshots, which a card's copy engine can reach by itself while kernels run."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import torch

PAGE = 4096
SLICE = 256 << 20
"""Bytes, or a little more, that are registered at once: launches of other threads wait meanwhile."""


class HostRoom:
    """A run of host memory, which begins with a page and is zero at first."""

    def __init__(self, nbytes: int, card: torch.device | None, starts: Sequence[int]) -> None:
        """
        Args:
            nbytes: of ``data``.
            card: whose copy engine is to reach it; None: none.
            starts: where the tensors in it begin, in order, each with a page. None of them is registered in two parts,
                as no copy may go beyond one.

        Raises:
            OSError, RuntimeError: the memory cannot be had, or not be registered.
        """
        self.data = torch.empty(0, dtype=torch.uint8)
        if nbytes:
            # Private, as the kernel seldom gives shared memory large pages; and not for children: after a fork, what is
            # written would move to a page that the card knows nothing of.
            memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_DONTFORK)
            # Small pages take longer to get, to register, and to give back when this process is killed, which others
            # wait for. A kernel without large ones refuses, and small ones will do.
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
            self.data = torch.frombuffer(memory, dtype=torch.uint8)
        self._registered: list[int] = []
        if card is not None:
            # What is registered must not be unmapped.
            with contextlib.ExitStack() as unless_all:
                unless_all.callback(self.close)
                for first, end in _slices(nbytes, starts):
                    self._register(card, self.data.data_ptr() + first, end - first)
                unless_all.pop_all()

    def _register(self, card: torch.device, address: int, nbytes: int) -> None:
        with torch.cuda.device(card):
            runtime = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostRegister(address, nbytes, 0))
        self._registered.append(address)

    def close(self) -> None:
        """Give it back; nothing may be written to it any more."""
        for address in self._registered:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(address))
        self._registered = []
        self.data = torch.empty(0, dtype=torch.uint8)


def _slices(nbytes: int, starts: Sequence[int]) -> list[tuple[int, int]]:
    borders = [0]
    for start in starts:
        if start - borders[-1] >= SLICE:
            borders.append(start)
    return [(begin, end) for begin, end in zip(borders, [*borders[1:], nbytes], strict=True) if begin < end]
