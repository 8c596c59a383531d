"""Triton kernel that adds up the digests of many boxes in one launch; imported only where a GPU is.

A program of the kernel reads one tile: up to :data:`TILE_BYTES` of one segment of
:mod:`liver_slurm.transfer.digest_table`. It adds its sum to its box's by an atomic addition, whose order does not
matter modulo 2^64. Word, factor and sum are as :mod:`liver_slurm.transfer.multilinear` defines them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from liver_slurm.transfer.digest_table import COLUMNS, DigestTable

if TYPE_CHECKING:
    import torch

TILE_BYTES = 1 << 16
"""Bytes that a program reads."""

LANES = {16: 512, 4: 2048, 2: 2048, 1: 2048}
"""Units that a program reads at a time, for each unit."""

WARPS = 4


def add_digests(table: DigestTable, sums: torch.Tensor) -> None:
    """Add the sums of a table's segments to those of their boxes, in the current stream, without waiting for it.

    Args:
        table: on the device.
        sums: int64 [boxes], on the device; from zeros it becomes the digests less the numbers of bytes.
    """
    _add[(table.tiles.numel(),)](
        table.tiles,
        table.rows,
        sums,
        UNIT=table.unit,
        FLAT=table.flat,
        COLUMNS=COLUMNS,
        TILE=TILE_BYTES // table.unit,
        LANES=LANES[table.unit],
        num_warps=WARPS,
    )


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _factor(word):  # type: ignore[no-untyped-def]  # Triton takes no annotations but its own
    """Factor of a word by its number in the block, uint32: MurmurHash3's finalizer of the number + 1."""
    mixed = word + 1
    mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B
    mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35
    return mixed ^ (mixed >> 16)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _add(  # type: ignore[no-untyped-def]
    tiles,
    table,
    sums,
    UNIT: tl.constexpr,
    FLAT: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    """Add up one tile. UNIT is in bytes, TILE and LANES are in units; FLAT: the segment is a single row."""
    program = tl.program_id(0)
    row = table + tl.load(tiles + program).to(tl.int64) * COLUMNS
    units = tl.load(row + 1).to(tl.int32)
    begin = (program - tl.load(row + 9).to(tl.int32)) * TILE
    count = tl.minimum(units - begin, TILE)
    word = tl.load(row + 2).to(tl.uint32)
    phase = tl.load(row + 3).to(tl.uint32) + begin.to(tl.uint32)

    if UNIT >= 4:
        base = tl.load(row).to(tl.pointer_type(tl.uint32))
    elif UNIT == 2:
        base = tl.load(row).to(tl.pointer_type(tl.uint16))
    else:
        base = tl.load(row).to(tl.pointer_type(tl.uint8))
    width: tl.constexpr = 4 if UNIT == 16 else 1
    base += begin.to(tl.int64) * width
    if not FLAT:
        gap = tl.multiple_of(tl.load(row + 4), width)
        length = tl.load(row + 5).to(tl.uint32)
        magic = tl.load(row + 6).to(tl.uint32).to(tl.uint64)
        begin_row = begin.to(tl.uint32) // length
        begin_column = begin.to(tl.uint32) - begin_row * length
        base += begin_row.to(tl.int64) * gap
    base = tl.multiple_of(base, UNIT)

    lanes = tl.arange(0, LANES)
    within = tl.arange(0, width)[None, :]
    total = tl.zeros([LANES, width], dtype=tl.uint64)
    for start in range(0, count, LANES):
        unit = start + lanes
        place = unit * width
        if not FLAT:
            # Rows that end before this unit: the column divided by the length. The product is at most one too small.
            column = begin_column + unit.to(tl.uint32)
            ended = ((column.to(tl.uint64) * magic) >> 32).to(tl.uint32)
            ended += (column - ended * length >= length).to(tl.uint32)
            place = place.to(tl.int64) + ended.to(tl.int64) * gap
        pointer = base + place[:, None] + within
        value = tl.load(pointer, mask=(unit < count)[:, None], other=0, eviction_policy="evict_first").to(tl.uint32)
        at = phase + unit.to(tl.uint32)
        if UNIT < 4:
            value <<= (at % (4 // UNIT) * (8 * UNIT))[:, None]
            at //= 4 // UNIT
        factor = _factor((word + at * width)[:, None] + within.to(tl.uint32))
        total += value.to(tl.uint64) * factor.to(tl.uint64)
    found = tl.sum(total).to(tl.int64, bitcast=True) * tl.load(row + 8)
    tl.atomic_add(sums + tl.load(row + 7), found, sem="relaxed")
