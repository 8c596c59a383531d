from __future__ import annotations

import ctypes

import pytest
import torch
from digest_boxes import boxes, content, random_bytes
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.transfer import digest_table as module
from liver_slurm.transfer.digest_table import UNITS, DigestTable, Segment, digest_tables, segments, unit_of
from liver_slurm.transfer.multilinear import WORD_BYTES, block_factor

TILE = 64
"""Bytes of a tile: boxes have several."""


def read(address: int, count: int) -> bytes:
    return ctypes.string_at(address, count)


def test_views_collapse_to_the_fewest_segments() -> None:
    whole = torch.zeros(6, 5, 4, 8)
    row = 5 * 4 * 8 * 4
    for view, rows, length in (
        (whole, 1, 6 * row),
        (whole[1:3], 1, 2 * row),
        (whole[:, 2:4], 6, 2 * 4 * 8 * 4),
        (whole[..., 3:5], 6 * 5 * 4, 2 * 4),
        (whole[2:3, :, :, 1], 5 * 4, 4),
        (whole[0, 0, 0, 0], 1, 4),
    ):
        (segment,) = segments(view)
        assert (segment.address, segment.rows, segment.length) == (view.data_ptr(), rows, length)
    assert len(segments(whole[:, 1:3, :, 2:4])) == 6, "three axes: a segment for each place of the outermost"
    assert segments(whole[:0]) == []


@given(box=boxes(), part=st.sampled_from([4, 8, 24, 1 << 30]))
def test_segments_hold_a_boxs_bytes_in_order(box: torch.Tensor, part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PART_BYTES", part)
        found = segments(box)
    data = bytearray(box.nbytes)
    covered = 0
    for segment in found:
        size = segment.rows * segment.length
        assert size > 0
        assert segment.position // part == (segment.position + size - 1) // part, "it lies in one part of the box"
        for row in range(segment.rows):
            at = segment.position + row * segment.length
            data[at : at + segment.length] = read(segment.address + row * segment.stride, segment.length)
        covered += size
    assert covered == box.nbytes
    assert bytes(data) == content(box)


@pytest.mark.parametrize(
    ("segment", "unit"),
    [
        (Segment(1600, 1, 64, 0, 0), 16),
        (Segment(1600, 1, 64, 3, 4), 16),  # a stride that is not used, a position between two words
        (Segment(1600, 1, 64, 0, 2), 2),
        (Segment(1600, 2, 64, 80, 0), 16),
        (Segment(1600, 2, 64, 68, 0), 4),
        (Segment(1604, 1, 64, 0, 0), 4),
        (Segment(1600, 1, 60, 0, 0), 4),
        (Segment(1602, 1, 64, 0, 0), 2),
        (Segment(1600, 3, 64, 67, 0), 1),
        (Segment(1600, 1, 7, 0, 0), 1),
    ],
)
def test_the_unit_divides_all_distances(segment: Segment, unit: int) -> None:
    assert unit_of(segment) == unit


def content_of(table: DigestTable, sizes: list[int]) -> list[bytearray]:
    """What the kernel would read, by its own arithmetic on the table; what it would not stays 255."""
    found = [bytearray(b"\xff" * size) for size in sizes]
    per_tile = TILE // table.unit
    for tile, number in enumerate(table.tiles.tolist()):
        address, units, word, phase, gap, length, magic, box, factor, first = table.rows[number].tolist()
        assert factor == 1
        assert not table.flat or units == length
        begin = (tile - first) * per_tile
        assert 0 <= begin < units
        for unit in range(begin, min(begin + per_tile, units)):
            row = unit * magic >> 32
            row += unit - row * length >= length
            assert row == unit // length
            at = word * WORD_BYTES + (phase + unit) * table.unit
            place = address + unit * table.unit + row * gap * min(table.unit, WORD_BYTES)
            found[box][at : at + table.unit] = read(place, table.unit)
    return found


@given(views=st.lists(boxes(), max_size=5))
def test_tables_cover_each_byte_of_each_box(views: list[torch.Tensor]) -> None:
    sizes = [view.nbytes for view in views]
    tables = digest_tables(views, TILE)
    ways = [(table.unit, table.flat) for table in tables]
    assert len(set(ways)) == len(ways)
    assert {unit for unit, _ in ways} <= set(UNITS)
    found = [content_of(table, sizes) for table in tables]
    for box, view in enumerate(views):
        parts = [each[box] for each in found] or [bytearray()]
        # A byte that is read by one table is 255 in all others.
        assert bytes(min(values) for values in zip(*parts, strict=True)) == content(view)


def test_a_box_beyond_a_block_has_the_blocks_factor() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_WORDS", 16)
        patch.setattr(module, "_PART_BYTES", 32)
        (table,) = digest_tables([random_bytes(160)], 16)
    rows = table.rows.tolist()
    assert [row[2] for row in rows] == [0, 8, 0, 8, 0], "words are counted from the start of a block"
    assert [row[8] % (1 << 64) for row in rows] == [1, 1, block_factor(1), block_factor(1), block_factor(2)]
    assert table.tiles.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [row[9] for row in rows] == [0, 2, 4, 6, 8]
