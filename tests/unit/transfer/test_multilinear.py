from __future__ import annotations

import itertools

import pytest
import torch
from digest_boxes import DTYPES, boxes, content, random_bytes
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.transfer import multilinear as module
from liver_slurm.transfer.multilinear import block_factor, multilinear

SOME = 40
"""Elements of the boxes that are changed."""


def finalize(number: int) -> int:
    number = (number ^ number >> 16) * 0x85EBCA6B % (1 << 32)
    number = (number ^ number >> 13) * 0xC2B2AE35 % (1 << 32)
    return number ^ number >> 16


def defined(data: bytes, block_words: int = 1 << 31) -> int:
    """The digest as the module's docstring defines it, word by word."""
    total = len(data)
    for place, at in enumerate(range(0, len(data), 4)):
        block, number = divmod(place, block_words)
        total += int.from_bytes(data[at : at + 4], "little") * finalize(number + 1) * block_factor(block)
    return total % (1 << 64)


def random_box(dtype: torch.dtype) -> torch.Tensor:
    return random_bytes(SOME * dtype.itemsize).view(dtype)


@given(box=boxes())
def test_equal_bytes_have_the_digest_that_is_defined(box: torch.Tensor) -> None:
    assert multilinear(box) == defined(content(box))


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (64, 1000)])
@given(box=boxes())
def test_any_bound_of_the_memory_gives_the_same(sizes: tuple[int, int], box: torch.Tensor) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_RUN", sizes[0])
        patch.setattr(module, "_PIECE", sizes[1])
        assert multilinear(box) == defined(content(box))


@pytest.mark.parametrize("words", [1, 3, 4])
@given(box=boxes())
def test_each_block_has_a_factor(words: int, box: torch.Tensor) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_WORDS", words)
        assert multilinear(box) == defined(content(box), words)


def test_a_known_digest_stays() -> None:
    """Both ends of a move may run different versions of this program."""
    assert multilinear(torch.tensor([1, -1], dtype=torch.int32)) == 8 + 0x514E28B7 + 0xFFFFFFFF * 0x30F4C306


def test_factors_of_blocks_are_odd_and_differ() -> None:
    factors = [block_factor(block) for block in range(1000)]
    assert factors[0] == 1
    assert len(set(factors)) == 1000
    assert all(factor % 2 and factor < 1 << 64 for factor in factors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_flipped_bits_show(dtype: torch.dtype, data: st.DataObject) -> None:
    box = random_box(dtype)
    raw = box.clone().view(torch.uint8)
    for place in data.draw(st.sets(st.integers(0, 8 * raw.numel() - 1), min_size=1, max_size=4)):
        raw[place // 8] ^= 1 << place % 8
    assert multilinear(raw) != multilinear(box)


def test_a_bit_that_flips_in_two_words_shows() -> None:
    words = torch.zeros(64, dtype=torch.int32)
    before = multilinear(words)
    for bit in (0, 15, 31):
        for first, second in itertools.combinations(range(64), 2):
            changed = words.clone()
            changed[[first, second]] = -(1 << 31) if bit == 31 else 1 << bit
            assert multilinear(changed) != before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(places=st.sets(st.integers(0, SOME - 1), min_size=2, max_size=2))
def test_two_elements_that_change_places_show(dtype: torch.dtype, places: set[int]) -> None:
    box = random_box(dtype)
    first, second = sorted(places)
    order = list(range(SOME))
    order[first], order[second] = second, first
    assert (multilinear(box[order]) != multilinear(box)) is (content(box[order]) != content(box))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(order=st.permutations(range(SOME)))
def test_a_permutation_shows(dtype: torch.dtype, order: list[int]) -> None:
    box = random_box(dtype)
    assert (multilinear(box[order]) != multilinear(box)) is (content(box[order]) != content(box))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(by=st.integers(1, SOME - 1))
def test_a_shift_shows(dtype: torch.dtype, by: int) -> None:
    box = random_box(dtype)
    assert multilinear(box.roll(by)) != multilinear(box)
    assert multilinear(torch.cat([torch.zeros(by, dtype=dtype), box])) != multilinear(box)
    assert multilinear(box[by:]) != multilinear(box[:-by])


@given(box=boxes(least=1), zeros=st.integers(1, 40))
def test_zeros_that_were_appended_show(box: torch.Tensor, zeros: int) -> None:
    longer = torch.cat([box.flatten(), torch.zeros(zeros, dtype=box.dtype)])
    assert multilinear(longer) != multilinear(box)


@given(box=boxes(least=2))
def test_a_transposition_shows(box: torch.Tensor) -> None:
    turned = box.permute(*reversed(range(box.dim())))
    assert (multilinear(turned) != multilinear(box)) is (content(turned) != content(box))
