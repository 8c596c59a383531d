"""Where boxes lie in memory that an owner has shared: computed on a CPU, as tests/gpu opens real memory."""

from __future__ import annotations

import ctypes

import pytest
import torch

from liver_slurm.transfer.one_sided import card_memory
from liver_slurm.transfer.one_sided.card_memory import CardReader
from liver_slurm.transfer.one_sided.description import Refusal, Region, View, view_of

SHARED = torch.arange(60, dtype=torch.float32)


@pytest.fixture
def reader() -> CardReader:
    """Over one region, without a card."""
    reader = CardReader.__new__(CardReader)
    reader._device = torch.device("cpu")
    reader._regions = [(Region(SHARED.data_ptr(), SHARED.nbytes, b""), SHARED.untyped_storage())]
    reader._begins = [SHARED.data_ptr()]
    return reader


@pytest.mark.parametrize(
    "view",
    [SHARED, SHARED[7:9], SHARED.view(3, 20).T[::2], SHARED[:0], SHARED[59:], SHARED.view(torch.bfloat16)[3:]],
    ids=["all", "part", "scattered", "empty", "last", "another type"],
)
def test_a_box_in_shared_memory_is_found(reader: CardReader, view: torch.Tensor) -> None:
    found = reader._view(view_of(view))
    assert torch.equal(found, view)
    assert not view.numel() or found.data_ptr() == view.data_ptr(), "it is not copied"


@pytest.mark.parametrize(
    ("begin", "shape", "strides"),
    [(-4, (1,), (1,)), (0, (61,), (1,)), (240, (1,), (1,)), (4, (60,), (1,)), (0, (2, 3), (58, 1)), (2, (1,), (1,))],
    ids=["before", "too long", "behind", "one too far", "too wide", "inside an element"],
)
def test_a_box_outside_of_it_is_refused(
    reader: CardReader, begin: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    # LS-32
    with pytest.raises(Refusal, match="it described a box"):
        reader._view(View(SHARED.data_ptr() + begin, shape, strides, "float32"))


def test_all_that_is_mapped_is_given_back_though_one_cannot_be(
    reader: CardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = list[int]()

    def close(name: str, address: ctypes.c_uint64) -> None:
        assert name == "cuIpcCloseMemHandle"
        closed.append(address.value)
        if address.value == 2:
            raise Refusal("CUDA_ERROR_INVALID_VALUE")

    monkeypatch.setattr(card_memory, "_call", close)
    monkeypatch.setattr(card_memory, "_bind", lambda _: None)
    reader._opened = [1, 2, 3]
    with pytest.raises(Refusal, match="CUDA_ERROR_INVALID_VALUE"):
        reader.close()
    assert sorted(closed) == [1, 2, 3]
    reader.close()
    assert sorted(closed) == [1, 2, 3], "once each"
