"""Reading another process's memory on the same machine: ``process_vm_readv``, one copy, nothing asked of the owner.

MPI libraries and UCX move large messages this way ("cross memory attach"). The kernel allows it between processes of
one user, as it allows debugging; where Yama (``kernel.yama.ptrace_scope`` 1) wants the owner's consent, the owner gives
it. Where it is forbidden, state comes in messages.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.one_sided.description import Description, Refusal, View, dtype_of, view_of

_IOV_MAX = 1024
"""Ranges of one call."""
_PR_SET_PTRACER, _ANY = 0x59616D61, -1

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


class ProcessReader:
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
            self._read(_range(owner.proof.address, found.numel()), _range(found.data_ptr(), found.numel()))
        except TransferError as error:
            raise Refusal(str(error)) from error
        if bytes(found.tolist()) != owner.proof.value:
            raise Refusal(f"process {self._pid} is another one here: it has a PID namespace of its own")

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        """See the protocol; one call of the kernel's for about a thousand contiguous ranges."""
        here, there = [], []
        for target, source in zip(targets, sources, strict=True):
            place = view_of(target)
            run = min(contiguous_run(place), contiguous_run(source))
            here.append(ranges(place, run))
            there.append(ranges(source, run))
        if here:
            self._read(np.concatenate(there), np.concatenate(here))

    def fetch(self, sources: Sequence[View]) -> list[torch.Tensor]:
        """See the protocol."""
        targets = [torch.empty(source.shape, dtype=dtype_of(source.dtype)) for source in sources]
        self.copy(targets, sources)
        return targets

    def staged(self, source: View) -> int:
        """See the protocol: all of it."""
        return source.nbytes

    def stream(self) -> AbstractContextManager[None]:
        """See the protocol: there is none."""
        return nullcontext()

    def synchronize(self) -> None:
        """See the protocol: what :meth:`fetch` returned is there."""

    def counter(self) -> int:
        """See the protocol."""
        self.copy([self._word], [self._counter])
        return int(self._word)

    def close(self) -> None:
        """See the protocol: nothing is held."""

    def _read(self, there: NDArray[np.uint64], here: NDArray[np.uint64]) -> None:
        """Read ranges into ranges, [n, 2] each, that are as long pair by pair."""
        while len(there):
            sources, targets = np.ascontiguousarray(there[:_IOV_MAX]), np.ascontiguousarray(here[:_IOV_MAX])
            got = _libc.process_vm_readv(
                self._pid, targets.ctypes.data, len(targets), sources.ctypes.data, len(sources), 0
            )
            if got <= 0:
                why = os.strerror(ctypes.get_errno()) if got < 0 else "nothing came"
                raise TransferError(f"the memory of process {self._pid} cannot be read: {why}")
            # At most 2 GiB are read in a call, and what comes before a range that is not there any more.
            ends = np.cumsum(targets[:, 1])
            done = int(np.searchsorted(ends, got, side="right"))
            begun = np.uint64(got) - (ends[done - 1] if done else np.uint64(0))
            there, here = there[done:], here[done:]
            if begun:
                there, here = there.copy(), here.copy()
                for side in (there, here):
                    side[0, 0] += begun
                    side[0, 1] -= begun


def _range(address: int, nbytes: int) -> NDArray[np.uint64]:
    return np.array([[address, nbytes]], dtype=np.uint64)


def contiguous_run(view: View) -> int:
    """Elements of each contiguous range that a view consists of: the product of its innermost axes."""
    run = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1:
            if stride != run:
                break
            run *= size
    return run


def ranges(view: View, run: int) -> NDArray[np.uint64]:
    """Cut a view into ranges of ``run`` elements in row-major order.

    Args:
        run: a product of the innermost axes, :func:`contiguous_run` at most.

    Returns:
        [n, 2]: address and bytes of each.
    """
    inner = 1
    outer = len(view.shape)
    while inner < run:
        outer -= 1
        inner *= view.shape[outer]
    starts = np.zeros(1, dtype=np.int64)
    for size, stride in zip(view.shape[:outer], view.strides[:outer], strict=True):
        starts = (starts[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    found = np.empty((len(starts), 2), dtype=np.uint64)
    found[:, 0], found[:, 1] = view.address + starts * view.itemsize, run * view.itemsize
    return found
