"""Pieces and moves: boxes of named state tensors in global coordinates, and how to cut them.

A weight is the tensor ``NAME``; its optimizer state is tensors of their own, of the same shape: ``NAME@master`` (where
the weight itself is not fp32), and ``NAME@`` with each name that :func:`moments_of` has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

Box = tuple[int, ...]
"""An offset or a shape, one number an axis, in elements."""

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
"""Bytes of an element of each dtype that state may have."""

STATE_DTYPE = "float32"
"""What masters and their averages are kept in, whatever the weights' precision, and moments unless the job says so."""


class Piece(NamedTuple):
    """A box of one tensor that one rank holds."""

    tensor: str
    offset: Box
    shape: Box


class TensorInfo(NamedTuple):
    """A whole tensor. ``layered``: its first axis counts transformer layers."""

    name: str
    shape: Box
    dtype: str
    layered: bool = False


class Move(NamedTuple):
    """Copy one box from a source rank to a target rank; local where both are the same worker."""

    tensor: str
    source_rank: int
    target_rank: int
    offset: Box
    shape: Box


MUON_MOMENTUM = "muon_momentum"
MOMENTS: dict[str, tuple[str, ...]] = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "muon": (MUON_MOMENTUM,),
}
"""By the name of what updates a weight, what it keeps of each element besides the master; torch's names, where torch
has them."""
ADAM = MOMENTS["adam"]
AVERAGE = "ema"
"""The exponential moving average of the master, where a job keeps one: to all that moves state, one more moment."""
KNOWN = frozenset({AVERAGE, *(name for names in MOMENTS.values() for name in names)})
"""All that may be kept of an element besides the master."""


class OptimizerKeys(Protocol):
    """The keys of a job's section ``[train]`` that say what is kept of each element."""

    @property
    def optimizer(self) -> str:
        """A key of :data:`MOMENTS`."""

    @property
    def ema_decay(self) -> float:
        """0: no average is kept."""

    @property
    def moments_precision(self) -> str:
        """``fp32`` or ``bf16``."""


def moment_dtype_of(train: OptimizerKeys) -> str:
    """Return what a job keeps moments in."""
    return "bfloat16" if train.moments_precision == "bf16" else STATE_DTYPE


def state_dtype(kind: str, moment_dtype: str) -> str:
    """Return what a kind of state is kept in; masters and averages are in fp32, moments in ``moment_dtype``."""
    return STATE_DTYPE if kind in ("master", AVERAGE) else moment_dtype


def moment_bytes(moments: tuple[str, ...], moment_dtype: str) -> int:
    """Return the bytes of all that is kept of one element besides its master."""
    return sum(ITEMSIZE[state_dtype(moment, moment_dtype)] for moment in moments)


def moments_of(train: OptimizerKeys, kind: str | None = None) -> tuple[str, ...]:
    """Return what a job keeps of each element that is trained, besides its master.

    Args:
        kind: what updates it, a key of :data:`MOMENTS`; None: ``train.optimizer``.
    """
    return (*MOMENTS[kind or train.optimizer], *((AVERAGE,) if train.ema_decay else ()))


def replayable(moments: tuple[str, ...]) -> bool:
    """Return whether a box of these moments can be updated by its gradient: Muon's update takes the whole matrix."""
    return MUON_MOMENTUM not in moments


def state_tensors(weight: str, dtype: str, derived: bool = False, moments: tuple[str, ...] = ADAM) -> tuple[str, ...]:
    """Return the names of the optimizer state of a weight: its fp32 master where it is apart, and the moments.

    ``derived``: the weight is made from its master, so the master is named even where both are one tensor.
    """
    master = (f"{weight}@master",) if derived or dtype != STATE_DTYPE else ()
    return (*master, *(f"{weight}@{moment}" for moment in moments))


def inside(offset: Box, shape: Box, piece: Piece) -> tuple[slice, ...] | None:
    """Return where the box lies in an array of the piece's shape; None if it is not all there."""
    starts = [a - b for a, b in zip(offset, piece.offset, strict=True)]
    if any(a < 0 or a + n > m for a, n, m in zip(starts, shape, piece.shape, strict=True)):
        return None
    return tuple(slice(a, a + n) for a, n in zip(starts, shape, strict=True))


def volume(shape: Box) -> int:
    """Return the elements of a box."""
    return math.prod(shape)


def shifted(offset: Box, by: Box) -> Box:
    """Return ``offset`` moved by ``by``."""
    return tuple(a + b for a, b in zip(offset, by, strict=True))


def flat_boxes(shape: Box, start: int, end: int) -> Iterator[tuple[Box, Box]]:
    """Cut the elements ``[start, end)`` of a box, counted in row-major order, into boxes.

    Yields at most ``2 * len(shape) - 1`` pairs (offset inside the box, shape), in row-major order.
    """
    if start >= end:
        return
    if start == 0 and end == math.prod(shape):
        yield (0,) * len(shape), shape
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    inner = math.prod(shape[1:])
    row = start // inner
    if start % inner or end - start < inner:
        # The range begins inside a row, or does not fill one.
        row_end = min(end, (row + 1) * inner)
        yield from _in_row(shape, row, start, row_end)
        start, row = row_end, row + 1
    rows = (end - start) // inner
    if rows > 0:
        yield (row,) + (0,) * (len(shape) - 1), (rows, *shape[1:])
        start, row = start + rows * inner, row + rows
    yield from _in_row(shape, row, start, end)


def _in_row(shape: Box, row: int, start: int, end: int) -> Iterator[tuple[Box, Box]]:
    inner = math.prod(shape[1:])
    for offset, extent in flat_boxes(shape[1:], start - row * inner, end - row * inner):
        yield (row, *offset), (1, *extent)
