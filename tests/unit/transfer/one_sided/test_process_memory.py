"""Reading another process's memory: every view arrives bit for bit, and what cannot be read is said so."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memory_owner
import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_owner import OtherProcess, Recipe, described, same_bytes
from scattered import pairs

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel import shared_memory
from liver_slurm.transfer.one_sided import process_memory
from liver_slurm.transfer.one_sided.description import Description, Proof, Refusal, View, own_proof, view_of
from liver_slurm.transfer.one_sided.memory_ranges import MOST
from liver_slurm.transfer.one_sided.process_memory import ProcessReader


@pytest.fixture(scope="module")
def other() -> Iterator[OtherProcess]:
    """A process whose memory is read."""
    with OtherProcess() as process:
        yield process


@pytest.fixture(scope="module")
def owner(other: OtherProcess) -> Description:
    found = other.call(described)
    assert isinstance(found, Description)
    return found


# ---- what is read --------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(pairs(), max_size=4))
def test_every_view_of_another_process_arrives_bit_for_bit(
    other: OtherProcess, owner: Description, some: list[tuple[Recipe, Recipe]]
) -> None:
    # LS-3
    views = other.call(memory_owner.make, *(source for source, _ in some))
    reader = ProcessReader(owner)
    targets = [target.make() for _, target in some]
    reader.copy(targets, views)
    assert all(same_bytes(target, source.make()) for target, (source, _) in zip(targets, some, strict=True))
    fetched = reader.fetch(views)
    assert all(view.is_contiguous() for view in fetched)
    assert all(same_bytes(view, source.make()) for view, (source, _) in zip(fetched, some, strict=True))
    other.call(memory_owner.drop)


@settings(max_examples=100, deadline=None)
@given(st.lists(pairs(), max_size=4))
def test_every_view_in_memory_that_can_be_mapped_arrives_alike(
    other: OtherProcess, some: list[tuple[Recipe, Recipe]]
) -> None:
    # LS-3
    views, owner = other.call(memory_owner.make_shared, *(source for source, _ in some))
    reader = ProcessReader(owner)
    reader._read = lambda *_: pytest.fail("it was asked of the kernel")  # type: ignore[method-assign]
    some, views = [some[n] for n, view in enumerate(views) if view.nbytes], [view for view in views if view.nbytes]
    targets = [target.make() for _, target in some]
    reader.copy(targets, views)
    assert all(same_bytes(target, source.make()) for target, (source, _) in zip(targets, some, strict=True))
    other.call(memory_owner.drop)


def test_memory_that_was_given_back_is_read_as_zeros_and_ends_nobody(other: OtherProcess) -> None:
    # LS-32
    recipe = Recipe("float32", (1 << 20,), (1,), (0,), 1)
    (view,), owner = other.call(memory_owner.make_shared, recipe)
    reader, target = ProcessReader(owner), torch.zeros(recipe.shape)
    reader.copy([target], [view])
    assert same_bytes(target, recipe.make())
    other.call(memory_owner.drop)
    reader.copy([target], [view])
    assert not target.any()
    name = f"/memfd:{shared_memory._NAME} "
    assert [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line and " r--s " in line]
    reader.close()
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line and " r--s " in line]
    with pytest.raises(TransferError, match="cannot be read"):
        reader.copy([target], [view])


def test_a_file_that_cannot_be_opened_is_read_by_the_kernel(other: OtherProcess) -> None:
    recipe = Recipe("float32", (1 << 18,), (1,), (0,), 2)
    (view,), owner = other.call(memory_owner.make_shared, recipe)
    (region,) = owner.regions
    number, inode, offset = process_memory._HANDLE.unpack(region.handle)
    own = os.memfd_create("one that can be cut off")
    os.ftruncate(own, region.nbytes + offset)
    for handle in (
        b"",
        process_memory._HANDLE.pack(number + 1000, inode, offset),
        process_memory._HANDLE.pack(number, inode + 1, offset),
        process_memory._HANDLE.pack(number, inode, -4096),
        process_memory._HANDLE.pack(number, inode, offset + 1),
        process_memory._HANDLE.pack(number, inode, 1 << 61),
        process_memory._HANDLE.pack(0, inode, 0),
    ):
        bad = msgspec.structs.replace(owner, regions=[msgspec.structs.replace(region, handle=handle)])
        target = torch.zeros(recipe.shape)
        ProcessReader(bad).copy([target], [view])
        assert same_bytes(target, recipe.make()), handle
    here = process_memory._HANDLE.pack(own, os.fstat(own).st_ino, offset)
    with pytest.raises(OSError, match="could be cut off"):
        process_memory._map_regions(
            msgspec.structs.replace(owner, pid=os.getpid(), regions=[msgspec.structs.replace(region, handle=here)])
        )
    os.close(own)
    other.call(memory_owner.drop)


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_the_own_process_is_read_alike_and_nothing_beside_a_target_is_written(pair: tuple[Recipe, Recipe]) -> None:
    source, target = (recipe.make() for recipe in pair)
    room = torch.empty(0, dtype=torch.uint8).set_(target.untyped_storage())
    expected = room.clone()
    torch.as_strided(expected.view(target.dtype), target.shape, target.stride(), target.storage_offset()).copy_(source)
    ProcessReader(described()).copy([target], [view_of(source)])
    assert torch.equal(room, expected)


@pytest.mark.parametrize("count", [MOST + delta for delta in (-1, 0, 1, 1500)])
def test_more_ranges_than_a_call_takes(other: OtherProcess, owner: Description, count: int) -> None:
    recipe = Recipe("float32", (count, 3), (2, 1), (0, 1), count)
    target = torch.zeros(3, count).T  # scattered on this side, too
    ProcessReader(owner).copy([target], other.call(memory_owner.make, recipe))
    assert same_bytes(target, recipe.make())


@pytest.mark.parametrize("most", [1, 3, 4, 7, 50, 4096])
def test_the_kernel_may_read_less_than_it_was_asked_for(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    class Stingy:
        """Reads at most so many bytes in a call, as the kernel does from 2 GiB on."""

        def process_vm_readv(self, pid: int, here: int, count: int, there: int, _: int, flags: int) -> int:
            sides = [(ctypes.c_uint64 * (2 * count)).from_address(side) for side in (here, there)]
            left = most
            for n in range(count):
                assert sides[0][2 * n + 1] == sides[1][2 * n + 1]
                got = min(left, sides[0][2 * n + 1])
                ctypes.memmove(sides[0][2 * n], sides[1][2 * n], got)
                left -= got
            return most - left

    reader = ProcessReader(described())
    monkeypatch.setattr(process_memory, "_libc", Stingy())
    source, target = Recipe("float32", (11, 5), (2, 1), (0, 1), 3).make(), torch.zeros(5, 11).T
    reader.copy([target], [view_of(source)])
    assert same_bytes(target, source)


def test_the_counter_is_read_anew_each_time() -> None:
    word = torch.zeros(1, dtype=torch.int64)
    reader = ProcessReader(described(counter=view_of(word)))
    for value in (0, 1, 1 << 40):
        word.fill_(value)
        assert reader.counter() == value


# ---- what cannot be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 5])
def test_memory_that_is_not_there_any_more(other: OtherProcess, owner: Description, before: int) -> None:
    # LS-32
    address, size = other.call(memory_owner.pages_with_a_hole, before, 3), mmap.PAGESIZE
    reader, target = ProcessReader(owner), torch.zeros(before + 4, size // 8, dtype=torch.int64)
    with pytest.raises(TransferError, match=rf"the memory of process {owner.pid} cannot be read: Bad address"):
        reader.copy([target], [View(address, tuple(target.shape), tuple(target.stride()), "int64")])
    assert not target[before:].any(), "what lies behind the hole is not taken for what lies in it"


def test_a_process_that_is_gone() -> None:
    # LS-32
    with OtherProcess() as process:
        gone = process.call(described)
        reader = ProcessReader(gone)
        process.kill()
        with pytest.raises(TransferError, match=rf"the memory of process {gone.pid} cannot be read: No such process"):
            reader.counter()
        with pytest.raises(Refusal, match="No such process"):
            ProcessReader(gone)


def test_another_process_of_that_number(owner: Description) -> None:
    stranger = Description("here", os.getpid(), owner.proof, [], owner.counter, [])
    with pytest.raises(Refusal, match=r"cannot be read|is another one here"):
        ProcessReader(stranger)
    proof = Proof(own_proof().address, b"not what lies there")
    with pytest.raises(Refusal, match=rf"process {os.getpid()} is another one here: it has a PID namespace of its own"):
        ProcessReader(described(proof))


def test_state_on_a_card_is_no_process_memory() -> None:
    here = described()
    with pytest.raises(Refusal, match="its state lies on a card"):
        ProcessReader(Description("here", here.pid, None, [], here.counter, []))


def test_a_process_that_may_not_be_read() -> None:
    # LS-32
    with OtherProcess() as hidden, OtherProcess() as nobody:
        hidden_owner, own = hidden.call(described), nobody.call(described)
        hidden.call(memory_owner.hide)
        nobody.call(memory_owner.become_nobody)
        assert nobody.call(memory_owner.try_to_read, own) == "", "one may read oneself"
        said = nobody.call(memory_owner.try_to_read, hidden_owner)
        assert said == f"Refusal: the memory of process {hidden_owner.pid} cannot be read: Operation not permitted"


class NoPrctl:
    """A kernel that answers prctl with an error."""

    def __init__(self, number: int) -> None:
        self._number = number

    def prctl(self, *_: Any) -> int:
        ctypes.set_errno(self._number)
        return -1


def test_a_kernel_without_yama_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    process_memory.let_others_read.cache_clear()
    monkeypatch.setattr(process_memory, "_libc", NoPrctl(errno.EINVAL))
    process_memory.let_others_read()
    process_memory.let_others_read.cache_clear()
    monkeypatch.setattr(process_memory, "_libc", NoPrctl(errno.EPERM))
    with pytest.raises(Refusal, match=r"prctl\(PR_SET_PTRACER\): Operation not permitted"):
        process_memory.let_others_read()
