from __future__ import annotations

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.transfer import checksum as module
from liver_slurm.transfer.checksum import Kind, digest

KINDS: tuple[Kind, ...] = ("xxh3", "mix")


@pytest.fixture(params=[1, 7, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """However little memory may be used, the digest is the same."""
    monkeypatch.setattr(module, "_CHUNK", request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_view_has_the_digest_of_its_copy(kind: Kind, dtype: torch.dtype, chunk: int) -> None:
    whole = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    for view in (whole, whole[1:3, :, 2:5], whole[:, 2, :], whole[2, 3, 1:2], whole.transpose(0, 2)):
        assert digest(view, kind) == digest(view.contiguous().clone(), kind)


def test_xxh3_is_that_of_the_bytes(chunk: int) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert digest(array) == xxhash.xxh3_64(array.tobytes()).intdigest()
    assert digest(torch.from_numpy(array)[:, 1:3]) == xxhash.xxh3_64(array[:, 1:3].tobytes()).intdigest()


def scramble(word: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = ((word ^ (word >> shift)) * factor) % (1 << 64)
    return word ^ (word >> 31)


def odd(number: int) -> int:
    return scramble(number * 0x9E3779B97F4A7C15 % (1 << 64)) | 1


def mix(words: list[int], length: int, block: int = 1 << 20) -> int:
    factors = [odd(at % block + 1) * (odd(-(at // block)) if at >= block else 1) for at in range(len(words))]
    return (length + sum(factor * word for factor, word in zip(factors, words, strict=True))) % (1 << 64)


def test_mix_is_as_defined(chunk: int) -> None:
    words = [-1, 0, 5, 2**31 - 1, -(2**31)]
    tensor = torch.tensor(words, dtype=torch.int32)
    assert digest(tensor.view(torch.float32), "mix") == mix(words, 5)
    assert digest(tensor[:4].view(torch.float64), "mix") == mix(words[:4], 2), "two words for each 64 bits"


def test_mix_of_several_blocks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module, "_factors", module._factors.__wrapped__)
    words = list(range(-5, 8))
    assert digest(torch.tensor(words, dtype=torch.int16), "mix") == mix(words, 13, block=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(data=st.data())
def test_flipped_bits_show(kind: Kind, dtype: torch.dtype, data: st.DataObject) -> None:
    tensor = torch.randn(8, generator=torch.Generator().manual_seed(1)).to(dtype)
    raw = tensor.clone().view(torch.uint8)
    places = data.draw(st.sets(st.integers(0, 8 * raw.numel() - 1), min_size=1, max_size=4))
    for place in places:
        raw[place // 8] ^= 1 << place % 8
    assert digest(raw.view(dtype), kind) != digest(tensor, kind)


def test_two_signs_that_flip_show() -> None:
    tensor = torch.ones(2, dtype=torch.float64)
    assert digest(-tensor, "mix") != digest(tensor, "mix")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_or_an_exchange_changes_it(kind: Kind) -> None:
    tensor = torch.randn(64)
    before = digest(tensor, kind)
    assert digest(-0.0 * torch.ones(3), kind) != digest(torch.zeros(3), kind)
    tensor[[3, 40]] = tensor[[40, 3]]
    assert digest(tensor, kind) != before
    assert digest(torch.zeros(3), kind) != digest(torch.zeros(4), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_empty_views(kind: Kind) -> None:
    assert digest(torch.nn.Parameter(torch.ones(2)), kind) == digest(torch.ones(2), kind)
    assert digest(torch.ones(3, 0), kind) == digest(torch.ones(0), kind)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_and_a_cpu_agree(dtype: torch.dtype) -> None:
    whole = torch.randn(40, 50, 60).to(dtype)
    for view in (whole, whole[1:30, :, 2:50]):
        assert digest(view.cuda()) == digest(view.cuda(), "mix") == digest(view, "mix")
        assert digest(view.cuda(), "xxh3") == digest(view, "xxh3")


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_element_among_others_is_as_any(kind: Kind) -> None:
    row = torch.tensor([1.5, 2.5, 3.5])
    assert digest(row[1::2], kind) == digest(torch.tensor([2.5]), kind)
