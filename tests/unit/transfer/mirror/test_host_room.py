"""Host memory of mirrors: worlds take it over from each other, and what is registered is given back."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from types import SimpleNamespace

import msgspec
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


def test_a_room_does_for_a_little_more_than_it_was_made_for() -> None:
    rooms = Rooms(None)
    lease = rooms.lease()
    first = lease.take(1000 * PAGE + 1)
    assert first.numel() == 1000 * PAGE + 1
    lease.end()
    assert rooms.spare_bytes <= 1.125 * first.numel()
    assert rooms.lease().take(1001 * PAGE).data_ptr() == first.data_ptr()


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


def test_a_room_is_mapped_once_and_goes_after_its_last_world(registered: dict[int, int]) -> None:
    theirs, ours = Rooms(None), Rooms(CARD)
    lease = theirs.lease()
    room = lease.take(PAGE, shared=True)
    places = lease.places()
    first = ours.lease()
    (mapped,) = first.map(places)
    room[7] = 42
    assert mapped[7] == 42, "both are the same memory"
    assert list(registered) == [mapped.data_ptr()]
    first.end()
    second = ours.lease()
    assert [one.data_ptr() for one in second.map(places)] == [mapped.data_ptr()]
    assert len(registered) == 1, "nothing was registered anew"
    second.end()
    assert len(registered) == 1
    ours.lease().end()
    assert not registered, "a world went by that did not want it"
    lease.end()
    assert mapped[7] == 42, "whoever still looks at it is not thrown out"


def test_private_and_shared_rooms_are_not_taken_for_each_other() -> None:
    rooms = Rooms(None)
    lease = rooms.lease()
    private, shared = lease.take(PAGE).data_ptr(), lease.take(PAGE, shared=True).data_ptr()
    lease.end()
    lease = rooms.lease()
    assert lease.take(PAGE, shared=True).data_ptr() == shared
    assert lease.take(PAGE).data_ptr() == private
    assert len(lease.places().files) == 1


def test_places_that_do_not_fit_are_refused() -> None:
    lease = Rooms(None).lease()
    lease.take(PAGE, shared=True)
    places = lease.places()
    ((number, inode, nbytes),) = places.files
    for bad in ((number, inode + 1, nbytes), (number, inode, nbytes + 1), (number, inode, 0), (1 << 20, inode, nbytes)):
        with pytest.raises(OSError, match=r"not there any more|shorter than it says|No such file"):
            Rooms(None).lease().map(msgspec.structs.replace(places, files=(bad,)))
