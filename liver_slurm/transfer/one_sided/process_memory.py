"""Reading another process's memory on the same machine: one copy, nothing asked of the owner.

State that lies in the owner's file (see :mod:`~liver_slurm.parallel.shared_memory`) is mapped, to be read only, and
copied by this process. All else is read with ``process_vm_readv``, as MPI libraries and UCX move large messages ("cross
memory attach"), and so is all state where the file cannot be opened. The kernel allows both between processes of one
user, as it allows debugging; where Yama (``kernel.yama.ptrace_scope`` 1) wants the owner's consent for the second, the
owner gives it. Where that is forbidden, state is read over a connection.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import logging
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel import shared_memory
from liver_slurm.parallel.torch_private import copy_all, storage_at
from liver_slurm.transfer.one_sided.description import Description, Reader, Refusal, Region, View, dtype_of, view_of
from liver_slurm.transfer.one_sided.memory_ranges import MOST, Ranges, advance, behind, contiguous_run, ranges, single

_PR_SET_PTRACER, _ANY = 0x59616D61, -1
_HANDLE = struct.Struct("<qqq")
"""Descriptor and inode of the owner's file, and a region's offset in it."""
_POPULATE_READ = 22
_CPU = torch.device("cpu")

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip


@cache
def let_others_read() -> None:
    """Let other processes of this user read this one's memory, where Yama asks the owner; for the process's life.

    A kernel without Yama does not know the request, and asks nobody.

    Raises:
        Refusal: the kernel does not take it.
    """
    if _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANY), 0, 0, 0) != 0 and ctypes.get_errno() != errno.EINVAL:
        raise Refusal(f"prctl(PR_SET_PTRACER): {os.strerror(ctypes.get_errno())}")


def regions(tensors: Iterable[torch.Tensor]) -> list[Region]:
    """Return the ranges of this process's memory that tensors lie in, and others can map."""
    number, inode, places = shared_memory.places(tensors)
    return [Region(place.address, place.nbytes, _HANDLE.pack(number, inode, place.offset)) for place in places]


class _Mapped(NamedTuple):
    """A region of the owner's, as it is mapped here."""

    region: Region
    mapped: NDArray[np.uint8]
    """Its bytes here, which are unmapped with the last reference to this."""
    storage: torch.UntypedStorage
    """The same, for tensors; it does not keep them."""


def _map_regions(owner: Description) -> list[_Mapped]:
    """Map the owner's regions, to be read only; in order of their addresses.

    Raises:
        OSError: that is not allowed, or they could be cut off while they are read.
        Refusal: they are not where it says.
    """
    found = []
    with ExitStack() as opened:
        files: dict[tuple[int, int], int] = {}
        for region in sorted(owner.regions, key=lambda region: region.address):
            if len(region.handle) != _HANDLE.size:
                raise Refusal("it sent a handle that is none")
            number, inode, offset = _HANDLE.unpack(region.handle)
            if (number, inode) not in files:
                files[number, inode] = shared_memory.open_file(owner.pid, number, inode)
                opened.callback(os.close, files[number, inode])
            file = files[number, inode]
            if offset < 0 or not 0 < region.nbytes <= os.fstat(file).st_size - offset:
                raise Refusal("its file is shorter than it says")
            mapped = shared_memory.map_part(file, offset, region.nbytes)
            found.append(_Mapped(region, mapped, storage_at(mapped.ctypes.data, region.nbytes, _CPU)))
    return found


class ProcessReader(Reader):
    """Reads the memory of one process; see :class:`~liver_slurm.transfer.one_sided.description.Reader`."""

    def __init__(self, owner: Description) -> None:
        """
        Raises:
            Refusal: the kernel does not allow it, or that process is another one than its owner.
        """
        self._pid = owner.pid
        self._counter, self._word = owner.counter, torch.zeros(1, dtype=torch.int64)
        if owner.proof is None:
            raise Refusal("its state lies on a card")
        found = torch.empty(len(owner.proof.value), dtype=torch.uint8)
        try:
            self._read(single(owner.proof.address, found.numel()), single(found.data_ptr(), found.numel()))
        except TransferError as error:
            raise Refusal(str(error)) from error
        if bytes(found.tolist()) != owner.proof.value:
            raise Refusal(f"process {self._pid} is another one here: it has a PID namespace of its own")
        self._regions: list[_Mapped] = []
        try:
            self._regions = _map_regions(owner)
        except (OSError, Refusal) as error:
            _log.info("state of process %d is read with process_vm_readv, as it cannot be mapped: %s", self._pid, error)
        self._begins = [each.region.address for each in self._regions]
        for box in owner.boxes:
            for view in (*box.state, box.gradient):
                if view is not None:
                    self._look_up(view)

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        """Copy what is mapped; of the rest, one call of the kernel's for about a thousand contiguous ranges."""
        here, there = [], []
        regions = self._regions  # they stay while they are read
        mapped: list[tuple[torch.Tensor, torch.Tensor]] = []
        for target, source in zip(targets, sources, strict=True):
            region = self._region(regions, source)
            if region is not None:
                mapped.append((target, _tensor(region, source)))
                continue
            place = view_of(target)
            run = min(contiguous_run(place), contiguous_run(source))
            here.append(ranges(place, run))
            there.append(ranges(source, run))
        if here:
            self._read(np.concatenate(there), np.concatenate(here))
        if mapped:
            with torch.no_grad():
                copy_all(*zip(*mapped, strict=True))

    def counter(self) -> int:
        self.copy([self._word], [self._counter])
        return int(self._word)

    def close(self) -> None:
        self._regions = []

    def _region(self, regions: Sequence[_Mapped], view: View) -> _Mapped | None:
        """Return the region that a view lies in; None: it lies in none."""
        place = bisect.bisect_right(self._begins, view.address) - 1
        if not regions or place < 0 or not view.nbytes or view.address % view.itemsize:
            return None
        return regions[place] if view.end <= regions[place].region.end else None

    def _look_up(self, view: View) -> None:
        """Have the kernel look up a view's pages now, so that copies need not wait for that; it need not be able to."""
        region = self._region(self._regions, view)
        if region is not None:
            begin = view.address - view.address % mmap.PAGESIZE
            place = region.mapped.ctypes.data + begin - region.region.address
            _libc.madvise(ctypes.c_void_p(place), ctypes.c_size_t(view.end - begin), _POPULATE_READ)

    def _read(self, there: Ranges, here: Ranges) -> None:
        """Read ranges into ranges, [n, 2] each, that are as long pair by pair."""
        while len(there):
            sources, targets = np.ascontiguousarray(there[:MOST]), np.ascontiguousarray(here[:MOST])
            got = _libc.process_vm_readv(
                self._pid, targets.ctypes.data, len(targets), sources.ctypes.data, len(sources), 0
            )
            if got <= 0:
                why = os.strerror(ctypes.get_errno()) if got < 0 else "nothing came"
                raise TransferError(f"the memory of process {self._pid} cannot be read: {why}")
            # At most 2 GiB are read in a call, and what comes before a range that is not there any more.
            done = advance(targets, got)
            there, here = behind(there, *done), behind(here, *done)


def _tensor(mapped: _Mapped, view: View) -> torch.Tensor:
    """Return a view of the owner's, where it is mapped, which must stay so."""
    offset = (view.address - mapped.region.address) // view.itemsize
    return torch.empty(0, dtype=dtype_of(view.dtype)).set_(mapped.storage, offset, view.shape, view.strides)
