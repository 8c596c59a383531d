"""Tables of what a digest's kernel reads: boxes as segments of equal rows, and segments as tiles of bounded size.

Pure: addresses and numbers, on the CPU. :mod:`liver_slurm.transfer.digest_kernel` reads the tables on the device.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from liver_slurm.transfer.multilinear import BLOCK_WORDS, WORD_BYTES, block_factor

if TYPE_CHECKING:
    import torch

UNITS = (16, 4, 2, 1)
"""Bytes that a thread reads at a time: the largest that divides all of a segment's distances. 16 are four words."""

COLUMNS = 10
"""Columns of a table; see :func:`_row`."""

_PART_BYTES = 1 << 30
"""Bytes of a box that a segment covers at most: it lies in one block, and its units are counted in 32 bits."""


class Segment(NamedTuple):
    """Rows of a box that are of equal length and at equal distances, all figures in bytes."""

    address: int
    rows: int
    length: int
    """Of a row, contiguous."""
    stride: int
    """From a row to the next."""
    position: int
    """Of the first byte in the box, in row-major order; rows follow each other."""


class DigestTable(NamedTuple):
    """Segments that are read in the same way."""

    unit: int
    """Bytes, of :data:`UNITS`."""
    flat: bool
    """Whether each segment is a single row."""
    rows: torch.Tensor
    """int64 [segments, COLUMNS]."""
    tiles: torch.Tensor
    """int32 [tiles]: the segment that each tile belongs to; a segment's tiles follow each other."""


def digest_tables(views: Iterable[torch.Tensor], tile_bytes: int) -> list[DigestTable]:
    """Make the tables of some boxes, on the CPU: one for each way of reading that occurs.

    Args:
        views: the boxes, numbered from 0.
        tile_bytes: bytes of a segment that a tile covers, a multiple of the largest unit.
    """
    import torch

    alike: defaultdict[tuple[int, bool], list[tuple[int, Segment]]] = defaultdict(list)
    for box, view in enumerate(views):
        for segment in segments(view):
            alike[unit_of(segment), segment.rows == 1].append((box, segment))
    tables = []
    for (unit, flat), members in alike.items():
        counts = [-(-segment.rows * segment.length // tile_bytes) for _, segment in members]
        firsts = [0, *itertools.accumulate(counts)]
        rows = [_row(box, segment, unit, first) for (box, segment), first in zip(members, firsts, strict=False)]
        tiles = torch.repeat_interleave(torch.arange(len(members), dtype=torch.int32), torch.tensor(counts))
        tables.append(DigestTable(unit, flat, torch.tensor(rows, dtype=torch.int64), tiles))
    return tables


def segments(view: torch.Tensor) -> list[Segment]:
    """Split a box into segments, none of which crosses a multiple of :data:`_PART_BYTES` of the box."""
    if view.numel() == 0:
        return []
    size, address, position = view.element_size(), view.data_ptr(), 0
    axes = _collapse(view.shape, view.stride())
    length = axes.pop()[0] * size if axes and axes[-1][1] == 1 else size
    rows, stride = axes.pop() if axes else (1, 0)
    found: list[Segment] = []
    for place in itertools.product(*(range(count) for count, _ in axes)):
        offset = sum(index * step for index, (_, step) in zip(place, axes, strict=True))
        found += _parts(Segment(address + offset * size, rows, length, stride * size, position))
        position += rows * length
    return found


def unit_of(segment: Segment) -> int:
    """Return the largest unit in which a segment can be read.

    It is aligned, and never goes across the end of a row or of a word.
    """
    distances = segment.address | segment.length | (segment.stride if segment.rows > 1 else 0)
    if distances % UNITS[0] == 0 and segment.position % WORD_BYTES == 0:
        return UNITS[0]
    return next(unit for unit in UNITS[1:] if (distances | segment.position) % unit == 0)


def _collapse(shape: Iterable[int], strides: Iterable[int]) -> list[tuple[int, int]]:
    """Axes as (count, stride), as few as there can be: those of one element left out, neighbours merged."""
    axes: list[tuple[int, int]] = []
    for count, stride in zip(shape, strides, strict=True):
        if count == 1:
            continue
        if axes and axes[-1][1] == count * stride:
            axes[-1] = (axes[-1][0] * count, stride)
        else:
            axes.append((count, stride))
    return axes


def _parts(segment: Segment) -> Iterator[Segment]:
    """Cut a segment wherever its position is a multiple of :data:`_PART_BYTES`."""
    rest = [segment]
    while rest:
        part = rest.pop()
        room = _PART_BYTES - part.position % _PART_BYTES
        if part.rows * part.length <= room:
            yield part
        else:
            before, after = _cut(part, room)
            yield from before
            rest += after


def _cut(segment: Segment, at: int) -> tuple[list[Segment], list[Segment]]:
    """Return the segments of the first ``at`` bytes, and those of the rest.

    A row that is cut is a segment for each side.
    """
    before, after = [], []
    whole, inside = divmod(at, segment.length)
    if whole:
        before.append(segment._replace(rows=whole))
    if inside:
        row = _from_row(segment, whole)._replace(rows=1)
        before.append(row._replace(length=inside))
        after.append(
            row._replace(address=row.address + inside, length=row.length - inside, position=row.position + inside)
        )
        whole += 1
    if whole < segment.rows:
        after.append(_from_row(segment, whole))
    return before, after


def _from_row(segment: Segment, row: int) -> Segment:
    """Return what is left of a segment from one of its rows on."""
    return segment._replace(
        address=segment.address + row * segment.stride,
        rows=segment.rows - row,
        position=segment.position + row * segment.length,
    )


def _row(box: int, segment: Segment, unit: int, first_tile: int) -> list[int]:
    """Return a segment's row of the table.

    - 0: address of the first byte;
    - 1: units of the segment;
    - 2, 3: word in which the segment begins, counted from the start of its block, and units of it that come before;
    - 4: gap from the end of a row to the start of the next, in words, or in units if those are smaller;
    - 5, 6: length of a row in units, and 2^32 divided by it, for division by multiplication;
    - 7: box that the segment belongs to;
    - 8: factor of its block, as a signed number;
    - 9: first of its tiles.
    """
    length = segment.length // unit
    gap = segment.stride - segment.length if segment.rows > 1 else 0
    block, position = divmod(segment.position, BLOCK_WORDS * WORD_BYTES)
    factor = block_factor(block)
    return [
        *(segment.address, segment.rows * length),
        *(position // WORD_BYTES, position % WORD_BYTES // unit),
        *(gap // min(unit, WORD_BYTES), length, min((1 << 32) // length, (1 << 32) - 1)),
        *(box, factor - (1 << 64) if factor >= 1 << 63 else factor, first_tile),
    ]
