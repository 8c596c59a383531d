from __future__ import annotations

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.transfer import multilinear as module
from liver_slurm.transfer.checksum import Kind, digest, digests, signed
from liver_slurm.transfer.multilinear import multilinear

KINDS: tuple[Kind, ...] = ("xxh3", "mix")


@pytest.fixture(params=[1, 7, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """However little memory may be used, the digest is the same."""
    monkeypatch.setattr(module, "_RUN", request.param)
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


def test_mix_is_the_multilinear_digest(chunk: int) -> None:
    whole = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert digests([whole, whole[:, 1:3].numpy()], "mix") == [multilinear(whole), multilinear(whole[:, 1:3])]


def test_a_digest_is_signed_where_torch_stores_it() -> None:
    assert [signed(word) for word in (0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)] == [0, (1 << 63) - 1, -(1 << 63), -1]


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_element_among_others_is_as_any(kind: Kind) -> None:
    row = torch.tensor([1.5, 2.5, 3.5])
    assert digest(row[1::2], kind) == digest(torch.tensor([2.5]), kind)
