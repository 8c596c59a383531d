"""What an owner of state tells a receiver of its memory: where each box lies, and how to reach it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Protocol

import msgspec
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.reshard.tensors import ITEMSIZE

_MOST = 1 << 62
_Number = Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]
"""An address, a size or a stride; a description with another one is not decoded."""
_Axes = Annotated[tuple[_Number, ...], msgspec.Meta(max_length=32)]
_SECRET_BYTES = 16


class View(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in the owner's memory."""

    address: _Number
    """Of its first element."""
    shape: _Axes
    strides: _Axes
    """In elements."""
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(dtype_of(self.dtype).itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.itemsize

    @property
    def end(self) -> int:
        """First address behind its last element."""
        if 0 in self.shape:
            return self.address
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.address + (last + 1) * self.itemsize

    def narrow(self, axis: int, begin: int, count: int) -> View:
        """As :meth:`torch.Tensor.narrow`."""
        address = self.address + begin * self.strides[axis] * self.itemsize
        return View(address, (*self.shape[:axis], count, *self.shape[axis + 1 :]), self.strides, self.dtype)


class Region(msgspec.Struct, frozen=True, array_like=True):
    """A range of a card's memory that other processes can open."""

    address: _Number
    """Where it begins in the owner's address space."""
    nbytes: _Number
    handle: bytes

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.nbytes


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """Random bytes at an address: whoever reads them there reads the right process."""

    address: _Number
    value: Annotated[bytes, msgspec.Meta(min_length=_SECRET_BYTES, max_length=_SECRET_BYTES)]


class BoxDescription(msgspec.Struct, frozen=True, array_like=True):
    """One box: its state, and the gradient that the last update used."""

    state: tuple[View, ...]
    """Master and moments of a trained box; else one view."""
    gradient: View | None


class Description(msgspec.Struct, frozen=True):
    """All that one owner has for one receiver, in the order of the plan."""

    machine: str
    pid: int
    proof: Proof | None
    """None: the state lies on a card."""
    regions: list[Region]
    counter: View
    """Twice the number of updates that the owner has made; one more while it makes the next."""
    boxes: list[BoxDescription]
    refused: str = ""
    """Why nobody can read it; empty: one may try."""


class Refusal(TransferError):
    """The memory of a peer cannot be read from here; its state comes in messages."""


class Reader(Protocol):
    """Reads an owner's memory. Each call returns when the data is there."""

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        """Copy each source to its target, which has the same shape and dtype.

        Raises:
            TransferError: the owner is gone.
        """

    def fetch(self, sources: Sequence[View]) -> list[torch.Tensor]:
        """The sources as contiguous tensors, to be read in :meth:`stream`: copies, or the owner's own memory."""

    def staged(self, source: View) -> int:
        """Bytes of memory here that :meth:`fetch` takes for a source."""

    def stream(self) -> AbstractContextManager[Any]:
        """A block whose work on a card goes to the reader's own stream."""

    def synchronize(self) -> None:
        """Wait for what was launched in :meth:`stream`."""

    def counter(self) -> int:
        """The owner's update counter, see :class:`Description`."""

    def close(self) -> None:
        """Give the owner's memory back."""


_SECRET = secrets.token_bytes(_SECRET_BYTES)
_SECRET_PLACE = torch.frombuffer(bytearray(_SECRET), dtype=torch.uint8)


def own_proof() -> Proof:
    """Of this process."""
    return Proof(_SECRET_PLACE.data_ptr(), _SECRET)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        TransferError: no state has it.
    """
    if name not in (*ITEMSIZE, "int64"):
        raise TransferError(f"state of type {name[:20]!r} is not known here")
    found: torch.dtype = getattr(torch, name)
    return found


def view_of(tensor: torch.Tensor) -> View:
    """Describe a tensor of this process."""
    name = str(tensor.dtype).removeprefix("torch.")
    return View(tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), name)


def decode(data: bytes) -> Description:
    """Take what a peer says of its memory, of which nothing is believed that cannot be so.

    Raises:
        Refusal: it is no description, or one of memory that there cannot be.
    """
    try:
        found = msgspec.msgpack.decode(data, type=Description)
        views = [view for box in found.boxes for view in (*box.state, box.gradient) if view is not None]
        for view in (found.counter, *views):
            if len(view.shape) != len(view.strides) or view.end >= _MOST:
                raise Refusal("it described a box that there cannot be")
        if (found.counter.shape, found.counter.dtype) != ((1,), "int64"):
            raise Refusal("it described a counter that is none")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"its description cannot be understood: {error}") from error
    except TransferError as error:
        raise Refusal(str(error)) from error
    return found


def check(description: Description, machine: str) -> None:
    """Check that an owner's memory may be within reach.

    Raises:
        Refusal: it is not.
    """
    if description.refused:
        raise Refusal(description.refused)
    if description.machine != machine:
        raise Refusal("it is on another machine")
