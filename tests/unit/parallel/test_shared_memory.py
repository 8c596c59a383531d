"""Storages in memory that others can map: the same values at the same tensors, and nothing left when they are gone."""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.parallel import shared_memory
from liver_slurm.parallel.shared_memory import LEAST, give_back, places, share

PAGE = mmap.PAGESIZE


def shared(nbytes: int, fill: int = 1) -> torch.Tensor:
    """A tensor of so many bytes in memory that others can map."""
    tensor = torch.full((nbytes,), fill, dtype=torch.uint8)
    share([tensor.untyped_storage()], keep=True)
    return tensor


def in_file(tensor: torch.Tensor) -> torch.Tensor:
    """What another process finds in the file where a tensor lies."""
    number, _, (place,) = places([tensor])
    begin = place.offset + tensor.data_ptr() - place.address
    found = os.pread(number, tensor.nbytes, begin)
    return torch.frombuffer(bytearray(found), dtype=torch.uint8)


def file_bytes() -> int:
    """Memory that the file takes."""
    number = places([])[0]
    return os.fstat(number).st_blocks * 512 if number >= 0 else 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=6), st.booleans(), st.integers(0, 1 << 30))
def test_tensors_stay_what_they_were_and_others_see_what_is_written(sizes: list[int], keep: bool, seed: int) -> None:
    values = torch.Generator().manual_seed(seed)
    tensors = [torch.randint(0, 256, (size,), dtype=torch.uint8, generator=values) for size in sizes]
    wanted, views = [tensor.clone() for tensor in tensors], [tensor[1:] for tensor in tensors]
    share([tensor.untyped_storage() for tensor in tensors], keep)
    assert not keep or all(map(torch.equal, tensors, wanted))
    for tensor, view in zip(tensors, views, strict=True):
        tensor.fill_(7)
        view.add_(1)
        assert len(places([tensor])[2]) == (tensor.nbytes >= LEAST)
        if tensor.nbytes >= LEAST:
            assert torch.equal(in_file(tensor), tensor)
            assert tensor.unique().tolist() == [7, 8]


def test_what_is_shared_already_stays_where_it_is() -> None:
    tensor = shared(1 << 20)
    before = tensor.data_ptr(), places([tensor])
    share([tensor.untyped_storage()], keep=False)
    assert (tensor.data_ptr(), places([tensor])) == before


@pytest.mark.parametrize("nbytes", [LEAST, 3 << 20, 40 << 20])
def test_memory_is_given_back_also_where_another_has_it_mapped(nbytes: int) -> None:
    # LS-27
    give_back()
    before = file_bytes()
    tensor, other = shared(nbytes), shared(nbytes, 2)
    number, _, (place,) = places([tensor])
    begin = place.offset + tensor.data_ptr() // PAGE * PAGE - place.address
    mapped = np.frombuffer(mmap.mmap(number, nbytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=begin), dtype=np.uint8)
    assert mapped[-PAGE:].any()
    assert file_bytes() >= before + 2 * nbytes
    tensor.untyped_storage().resize_(0)
    give_back()
    assert nbytes <= file_bytes() - before < 2 * nbytes
    assert bool((other == 2).all())
    assert not mapped.any(), "one that has no business there any more reads zeros"
    del other
    give_back()
    assert file_bytes() == before


def test_what_is_allocated_behind_it_is_as_new() -> None:
    """The C library takes what it maps for zeros: of what it keeps in its heaps, no page may be replaced."""

    def use(turn: int) -> None:
        for size in range(LEAST, 8 << 20, (2 << 20) + 4096 * turn + 64):
            some = [torch.full((size,), 255, dtype=torch.uint8) for _ in range(3)]
            share([each.untyped_storage() for each in some], keep=bool(turn % 2))
            for each in some:
                each.fill_(255)
            del some, each
            assert not any(torch.zeros(size - 4096 * n, dtype=torch.uint8).any() for n in range(4))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(use, range(6)))
    give_back()


def test_nobody_can_cut_the_file_off() -> None:
    number = places([shared(LEAST)])[0]
    with pytest.raises(PermissionError):
        os.ftruncate(number, 0)


def test_a_forked_child_has_a_file_of_its_own() -> None:
    tensor = shared(1 << 20)
    child = os.fork()
    if child == 0:
        try:
            give_back()
            os._exit(places([tensor])[2] != [])
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    give_back()
    assert torch.equal(in_file(tensor), tensor)
    assert bool((tensor == 1).all())


def test_where_the_kernel_gives_no_such_file_all_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(shared_memory, "_file", None)
    monkeypatch.setattr(os, "memfd_create", refuse)
    tensor = shared(1 << 20)
    assert places([tensor]) == (-1, -1, [])
    assert bool((tensor == 1).all())


def test_what_is_not_the_c_librarys_stays_where_it_is() -> None:
    room = bytearray(1 << 20)
    tensor = torch.frombuffer(room, dtype=torch.uint8)
    share([tensor.untyped_storage()], keep=True)
    assert not places([tensor])[2]
    array = np.zeros(40 << 20, dtype=np.uint8)
    share([torch.from_numpy(array).untyped_storage()], keep=True)
    array[:] = 3
    assert bool((array == 3).all())
