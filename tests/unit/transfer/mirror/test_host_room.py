"""Host memory of mirrors: worlds take it over from each other, and what is registered is given back."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from types import SimpleNamespace

import pytest
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.mirror.host_room import PAGE, HostRoom, Rooms

PATIENCE = 60.0
CARD = torch.device("cuda", 0)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Memory that a card can reach, by address; there is none here, so its library is a stand-in."""
    held: dict[int, int] = {}

    def register(address: int, nbytes: int, _flags: int) -> int:
        held[address] = nbytes
        return 0 if nbytes < 100 * PAGE else 2  # out of memory

    def unregister(address: int) -> int:
        del held[address]
        return 0

    def check(code: int) -> None:
        if code:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "device", lambda _card: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "check_error", check)
    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return held


def test_a_room_begins_with_a_page_and_is_registered_until_it_is_closed(registered: dict[int, int]) -> None:
    room = HostRoom(3 * PAGE, CARD)
    address = room.data.data_ptr()
    assert address % PAGE == 0
    assert registered == {address: 3 * PAGE}
    assert not room.data.any()
    room.close()
    assert not registered
    assert room.data.numel() == 0


def test_what_cannot_be_registered_is_said(registered: dict[int, int]) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        Rooms(CARD).lease().take(100 * PAGE)


def test_the_next_world_takes_over_what_the_one_before_had(registered: dict[int, int]) -> None:
    rooms = Rooms(CARD)
    first, second = rooms.lease(), rooms.lease()
    addresses = {first.take(nbytes * PAGE).data_ptr() for nbytes in (2, 4)}
    assert rooms.spare_bytes == 0
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(second.take, 3 * PAGE)
        with pytest.raises(NotYet):
            taken.result(0.2)
        first.end()
        assert taken.result(PATIENCE).numel() == 3 * PAGE
    assert taken.result().data_ptr() in addresses
    assert rooms.spare_bytes == 2 * PAGE
    assert second.take(PAGE).data_ptr() in addresses
    assert set(registered) == addresses, "nothing was registered anew"


def test_a_room_that_is_too_small_makes_way_for_a_new_one(registered: dict[int, int]) -> None:
    rooms = Rooms(CARD)
    lease = rooms.lease()
    lease.take(PAGE)
    lease.end()
    again = rooms.lease().take(2 * PAGE)
    assert registered == {again.data_ptr(): 2 * PAGE}
    assert rooms.spare_bytes == 0


def test_who_waits_is_thrown_out_when_its_lease_is_given_up() -> None:
    rooms = Rooms(None)
    first, second, third = (rooms.lease() for _ in range(3))
    with ThreadPoolExecutor(2) as pool:
        thrown, waits = pool.submit(second.take, PAGE), pool.submit(third.take, PAGE)
        second.give_up()
        with pytest.raises(TransferError, match="given up"):
            thrown.result(PATIENCE)
        first.end()
        with pytest.raises(NotYet):
            waits.result(0.2)  # given up is not ended: what it has is still read
        second.end()
        assert waits.result(PATIENCE).numel() == PAGE
    first.end()
    third.end()
    assert rooms.spare_bytes == PAGE, "to end twice gives nothing back twice"
