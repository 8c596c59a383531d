"""Reading another process's memory on a card of the same machine: CUDA IPC, through the driver's own functions.

torch can share a storage between processes, too, but counts references in files that a killed process leaves behind,
and keeps memory that a killed receiver has not given back. Here the owner's memory is only looked at, between its
saying that it may be and its being told that it was; and the digests prove what was read.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from liver_slurm.parallel.cuda_driver import DriverError, call
from liver_slurm.parallel.torch_private import storage_at
from liver_slurm.transfer.one_sided.description import Description, Reader, Refusal, Region, View, dtype_of

_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = (("data", ctypes.c_ubyte * _HANDLE_BYTES),)


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the driver's.

    Raises:
        Refusal: it failed.
    """
    try:
        call(name, *arguments)
    except DriverError as error:
        raise Refusal(str(error)) from error


def _bind(device: torch.device) -> None:
    """Bind the calling thread to the card's context, which the driver's functions ask for."""
    torch.cuda.set_device(device)


def regions(tensors: Iterable[torch.Tensor]) -> list[Region]:
    """Return the ranges of the card's memory that tensors of this process lie in, for others to open.

    They lie on one card, which the calling thread has used before.

    Raises:
        Refusal: the allocator's memory cannot be shared, as with ``expandable_segments``.
    """
    found: list[Region] = []
    for address in sorted({tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}):
        if found and address < found[-1].end:
            continue
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
        handle = _Handle()
        _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
        found.append(Region(base.value, size.value, bytes(handle.data)))
    return found


class CardReader(Reader):
    """Reads memory of another process on this or another card; see
    :class:`~liver_slurm.transfer.one_sided.description.Reader`.

    Copies run in a stream of their own: contiguous ones by the copy engines, beside whatever the card computes.
    """

    def __init__(self, owner: Description, device: torch.device) -> None:
        """Opens the owner's memory.

        Raises:
            Refusal: it cannot be opened from here.
        """
        _bind(device)
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._regions: list[tuple[Region, Any]] = []
        self._opened: list[int] = []
        self._views: dict[View, torch.Tensor] = {}
        try:
            for region in sorted(owner.regions, key=lambda region: region.address):
                self._regions.append((region, storage_at(self._open(region.handle), region.nbytes, device)))
            self._begins = [region.address for region, _ in self._regions]
            self._counter = self._view(owner.counter)
            for box in owner.boxes:  # made now, so that nothing is looked for when it counts
                for view in (*box.state, box.gradient):
                    if view is not None:
                        self._at(view)
        except Exception:
            self.close()
            raise

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        with self.stream():
            for target, source in zip(targets, sources, strict=True):
                target.copy_(self._at(source), non_blocking=True)
        self._stream.synchronize()

    def fetch(self, sources: Sequence[View]) -> list[torch.Tensor]:
        """Return contiguous sources as they lie, for the kernel that uses them to read; copies of others."""
        return [self._at(source).contiguous() for source in sources]

    def staged(self, source: View) -> int:
        """Return the bytes of a source that is copied here: nothing for what is contiguous."""
        return 0 if self._at(source).is_contiguous() else source.nbytes

    def stream(self) -> Any:
        """Return a block whose kernels run in the reader's stream."""
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        """Wait for what was launched in :meth:`stream`."""
        self._stream.synchronize()

    def counter(self) -> int:
        with self.stream():
            return int(self._counter.item())

    def close(self) -> None:
        self._views, self._regions = {}, []
        self._counter = torch.empty(0)
        _bind(self._device)
        opened, self._opened = self._opened, []
        with ExitStack() as all_of_them:
            for address in opened:
                all_of_them.callback(_call, "cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def _open(self, data: bytes) -> int:
        if len(data) != _HANDLE_BYTES:
            raise Refusal("it sent a handle that is none")
        address, handle = ctypes.c_uint64(), _Handle.from_buffer_copy(data)
        _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), handle, ctypes.c_uint(_LAZY_PEER_ACCESS))
        self._opened.append(address.value)
        return address.value

    def _at(self, view: View) -> torch.Tensor:
        """Return what :meth:`_view` finds; looked for once."""
        found = self._views.get(view)
        if found is None:
            found = self._views[view] = self._view(view)
        return found

    def _view(self, view: View) -> torch.Tensor:
        """Return a tensor over a view of the owner's memory, from within its regions only.

        Raises:
            Refusal: it does not lie in them.
        """
        if 0 in view.shape:
            return torch.empty(view.shape, dtype=dtype_of(view.dtype), device=self._device)
        place = bisect.bisect_right(self._begins, view.address) - 1
        if place < 0 or view.end > self._regions[place][0].end:
            raise Refusal("it described a box outside the memory that it shared")
        region, storage = self._regions[place]
        offset, between = divmod(view.address - region.address, view.itemsize)
        if between:
            raise Refusal("it described a box that begins inside an element")
        return torch.empty(0, dtype=dtype_of(view.dtype), device=self._device).set_(
            storage, offset, view.shape, view.strides
        )
