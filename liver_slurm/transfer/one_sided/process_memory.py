"""Reading another process's memory on the same machine: ``process_vm_readv``, one copy, nothing asked of the owner.

MPI libraries and UCX move large messages this way ("cross memory attach"). The kernel allows it between processes of
one user, as it allows debugging; where Yama (``kernel.yama.ptrace_scope`` 1) wants the owner's consent, the owner gives
it. Where it is forbidden, state is read over a connection.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.one_sided.description import Description, Reader, Refusal, View, view_of
from liver_slurm.transfer.one_sided.memory_ranges import MOST, Ranges, advance, behind, contiguous_run, ranges, single

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

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        """See the base; one call of the kernel's for about a thousand contiguous ranges."""
        here, there = [], []
        for target, source in zip(targets, sources, strict=True):
            place = view_of(target)
            run = min(contiguous_run(place), contiguous_run(source))
            here.append(ranges(place, run))
            there.append(ranges(source, run))
        if here:
            self._read(np.concatenate(there), np.concatenate(here))

    def counter(self) -> int:
        """See the base."""
        self.copy([self._word], [self._counter])
        return int(self._word)

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
