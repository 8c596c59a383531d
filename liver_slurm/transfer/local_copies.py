"""What stays on a worker when worlds change: boxes that are copied from the old world's storage to the new one's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel.torch_private import copy_all
from liver_slurm.reshard.tensors import Move, Piece
from liver_slurm.transfer import threads
from liver_slurm.transfer.box_index import Index
from liver_slurm.transfer.cuda_stream import SideStream, mark
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox


class LocalCopies:
    """Made once the new world's storage is there; what both worlds keep in one storage is left alone."""

    def __init__(
        self,
        moves: Iterable[Move],
        held: Index,
        needed: Index,
        device: torch.device,
        pool: Executor | None = None,
        on_copied: Callable[[Sequence[SharedBox]], None] = lambda _: None,
    ) -> None:
        """
        Args:
            moves: within this worker.
            held, needed: what it has in the old world, in the new world.
            pool: shares the digests of boxes in host memory out among its threads.
            on_copied: called with the boxes once all are copied, before their digests are taken.
        """
        pieces = [Piece(move.tensor, move.offset, move.shape) for move in moves]
        pairs = [(held.shared(piece), needed.shared(piece)) for piece in pieces]
        self._on_copied = on_copied
        self._pairs = [pair for pair in pairs if not _shared(*pair)]
        self._digests = BoxDigests([[source for source, _ in self._pairs], [target for _, target in self._pairs]], pool)
        self._device, self._side = device, SideStream(device)
        self.nbytes = sum(source.nbytes for source, _ in self._pairs)
        self.digests_checked = 0

    def copy(self) -> None:
        """Copy all of them; returns when it is done."""
        self._copy_all()
        self._on_copied([target for _, target in self._pairs])

    def _copy_all(self) -> None:
        views = [pair for source, target in self._pairs for pair in zip(target.state, source.state, strict=True)]
        if self._device.type == "cuda":
            with torch.no_grad(), self._side.use(after=mark(self._device)):
                if views:
                    for some in _by_dtype(views):
                        copy_all(*zip(*some, strict=True))
            return
        views.sort(key=lambda pair: -pair[0].nbytes)  # so that no thread is left with a large one at the end
        with threads.idle() as pool:
            for copied in threads.spread(pool, _copy, views):
                copied.result()

    def prove(self) -> None:
        """Compare the digests of all copies with those of what they are copies of.

        Raises:
            TransferError: one differs.
        """
        with self._side.use():
            there, here = self._digests.take()
        labels = [target.label(view) for _, target in self._pairs for view in range(len(target.state))]
        for label, sent, arrived in zip(labels, there, here, strict=True):
            if sent != arrived:
                raise TransferError(f"{label}: the digest of a box that was copied inside this worker differs")
        self.digests_checked = len(here)


def warm_up(device: torch.device) -> None:
    """Load the kernels that copy on a card: their first use takes 10 ms, in which training would stand still."""
    for dtype in (torch.float32, torch.bfloat16):
        copy_all([torch.empty(2, dtype=dtype, device=device)], [torch.zeros(2, dtype=dtype, device=device)])


def _by_dtype(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    found: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for pair in pairs:
        found.setdefault(pair[0].dtype, []).append(pair)
    return list(found.values())


def _copy(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy to the first of each pair from the second."""
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)


def _shared(source: SharedBox, target: SharedBox) -> bool:
    """Return whether both worlds keep the box in one storage."""
    return [view.data_ptr() for view in source.state] == [view.data_ptr() for view in target.state]
