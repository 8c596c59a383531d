"""Digests of boxes on a GPU, prepared once and launched when the boxes hold what is to be proven."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.digest_table import UNITS, DigestTable, digest_tables
from liver_slurm.transfer.multilinear import multilinear


class PendingDigests:
    """Digests that a GPU is computing, of :meth:`DigestPlan.launch`."""

    def __init__(self, plan: DigestPlan, sums: torch.Tensor, computed: Any) -> None:
        """Refer to a launch.

        Args:
            plan: its boxes and tables must stay until the kernel has read them.
            sums: on the host, complete after ``computed``.
            computed: an event, or None: they are complete.
        """
        self._plan, self._sums, self._computed = plan, sums, computed

    def done(self) -> bool:
        """Return whether :meth:`result` would return at once."""
        return self._computed is None or bool(self._computed.query())

    def result(self) -> list[int]:
        """Wait, without holding the interpreter, and return each box's digest, 64 bits without a sign."""
        if self._computed is not None:
            self._computed.synchronize()
        return [
            (length + part) % (1 << 64) for length, part in zip(self._plan.lengths, self._sums.tolist(), strict=True)
        ]


class DigestPlan:
    """Boxes of one GPU and the tables by which a kernel finds them, made once for any number of launches.

    The views are referred to for as long as the plan is there. Their storage must stay where it is: a storage that was
    resized in between is not noticed.
    """

    def __init__(self, views: Iterable[torch.Tensor]) -> None:
        """Make the tables and copy them to the GPU, which waits for the current stream.

        Args:
            views: any shapes, strides and types. Contiguous boxes and those of two axes, one of them contiguous, are
                cheapest; others take a row of the table for each of their outer places.

        Raises:
            ValueError: a view is not on a GPU, or they are on several.
        """
        self._views = [view.detach() for view in views]
        devices = {view.device for view in self._views}
        if len(devices) > 1 or any(device.type != "cuda" for device in devices):
            raise ValueError(f"digests are planned for the boxes of one GPU, not of {sorted(map(str, devices))}")
        self._device = devices.pop() if devices else None
        self.lengths = [view.nbytes for view in self._views]
        """Bytes of each box."""
        self._tables: list[DigestTable] = []
        if self._device is not None:
            from liver_slurm.transfer import digest_kernel  # needs Triton, which comes with torch for GPUs only

            self._add = digest_kernel.add_digests
            self._tables = [
                table._replace(rows=table.rows.to(self._device), tiles=table.tiles.to(self._device))
                for table in digest_tables(self._views, digest_kernel.TILE_BYTES)
            ]

    def launch(self, stream: Any = None) -> PendingDigests:
        """Have the digests computed behind what is in the stream, and return without waiting.

        Args:
            stream: of torch, on the boxes' GPU; None: the current one.
        """
        if self._device is None:
            return PendingDigests(self, torch.zeros(0, dtype=torch.int64), None)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            sums = torch.zeros(len(self._views), dtype=torch.int64, device=self._device)
            for table in self._tables:
                self._add(table, sums)
            found = torch.empty(len(self._views), dtype=torch.int64, pin_memory=True)
            found.copy_(sums, non_blocking=True)
            computed = torch.cuda.Event()
            computed.record()
        return PendingDigests(self, found, computed)


def warm_up(device: torch.device) -> None:
    """Compile the kernel in all its variants, and have it prove itself against the reference.

    Args:
        device: a GPU.

    Raises:
        TransferError: the kernel's digests are not those of the reference.
    """
    boxes = samples(torch.arange(256, dtype=torch.uint8))
    found = DigestPlan(samples(torch.arange(256, dtype=torch.uint8, device=device))).launch().result()
    if found != [multilinear(box) for box in boxes]:
        raise TransferError(f"{device}: the kernel that computes digests is wrong on this GPU; use another node")


def samples(data: torch.Tensor) -> list[torch.Tensor]:
    """Small boxes in uint8 [256], which is aligned to 16 bytes: a row and three rows for each unit of the kernel."""
    rows = [data[unit : 4 * unit] for unit in UNITS]
    return rows + [data.as_strided((3, 3 * unit), (5 * unit, 1), unit) for unit in UNITS]
