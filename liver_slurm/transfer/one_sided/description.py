"""What an owner of state tells a receiver of its memory: where each box lies, and how to reach it."""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

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
    number: _Number = 0
    """Of the tensor among all that its owner has described, in which it is the elements from ``first`` on."""
    first: _Number = 0
    """In row-major order."""

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
        """Narrow as :meth:`torch.Tensor.narrow`, along an axis outside of which there is but one element."""
        address = self.address + begin * self.strides[axis] * self.itemsize
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        first = self.first + begin * math.prod(self.shape[axis + 1 :])
        return View(address, shape, self.strides, self.dtype, self.number, first)


class Region(msgspec.Struct, frozen=True, array_like=True):
    """A range of memory that other processes can open."""

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
    identity: _Number = 0
    """See :attr:`~liver_slurm.transfer.shared_box.SharedBox.identity`: a receiver takes it for no other box."""


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
    agent: bytes = b""
    """Metadata of the nixl agent that its memory is registered with; empty: it is with none."""
    device_number: _Number = 0
    """Of the card, as its owner counts them."""


class Refusal(TransferError):
    """The memory of a peer cannot be read in this way from here."""


class Reader(ABC):
    """Reads one owner's state. Each call returns when the data is there; several threads may call."""

    @abstractmethod
    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        """Copy each source to its target, which has the same shape and dtype.

        Raises:
            TransferError: the owner is gone.
        """

    @abstractmethod
    def counter(self) -> int:
        """Return the owner's update counter, see :class:`Description`."""

    def fetch(self, sources: Sequence[View]) -> list[torch.Tensor]:
        """Return the sources as contiguous tensors, to be read in :meth:`stream`: copies, or the owner's own memory."""
        targets = [torch.empty(source.shape, dtype=dtype_of(source.dtype)) for source in sources]
        self.copy(targets, sources)
        return targets

    def stands(self, _version: int) -> bool:
        """Return whether gradients that were fetched just now are those of the update to this version.

        Where only those of the last step before a cutover are asked for, they are.
        """
        return True

    def staged(self, source: View) -> int:
        """Return the bytes of memory here that :meth:`fetch` takes for a source."""
        return source.nbytes

    def expect(self, targets: Iterable[torch.Tensor]) -> None:
        """Be ready to copy to these."""
        del targets

    def stream(self) -> AbstractContextManager[Any]:
        """Return a block whose work on a card goes to the reader's own stream."""
        return nullcontext()

    def synchronize(self) -> None:  # noqa: B027 - on a CPU what was begun is done
        """Wait for what was launched in :meth:`stream`."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give the owner's memory back."""


_SECRET = secrets.token_bytes(_SECRET_BYTES)
_SECRET_PLACE = torch.frombuffer(bytearray(_SECRET), dtype=torch.uint8)


def own_proof() -> Proof:
    """Return the proof of this process."""
    return Proof(_SECRET_PLACE.data_ptr(), _SECRET)


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of that name.

    Raises:
        TransferError: no state has it.
    """
    if name not in ITEMSIZE:
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
