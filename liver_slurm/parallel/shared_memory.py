"""State of this process in memory that other processes can map: a file without a name, which ends with its users.

The kernel looks up every page that ``process_vm_readv`` reads; what is mapped is copied like one's own. torch cannot be
told to allocate such memory, so the pages below a storage that the C library has mapped for it alone are replaced where
they lie: its address stays, and with it all tensors over it. Freed, they are unmapped as those before would have been.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

LEAST = 64 << 10
"""Bytes of the smallest storage that is worth a mapping."""
_NAME = "liver-slurm"
_PAGE = mmap.PAGESIZE
_WORD = ctypes.sizeof(ctypes.c_size_t)
_MAPPED, _FLAGS = 2, 7
"""Of the C library's word in front of what it has allocated: mapped by itself; all flags."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_USUAL_THRESHOLD = 32 << 20
"""Bytes from which on the C library maps what it allocates, once memory of that size was used and freed."""
_CERTAINLY_MAPPED = (256 << 20, 4 << 30, 64 << 30)
"""Bytes for one of which there is no free place in any heap of the C library; nobody writes to them."""
_AT_A_TIME = 16 << 20
"""Bytes whose values are there twice while they are put into the file."""
_MOST_GAPS = 1 << 14
"""Free places in the C library's heap that are filled; as long as there are such, it maps nothing."""
_MAP_FIXED, _FAILED = 0x10, ctypes.c_void_p(-1).value
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_lock = threading.Lock()


class Place(NamedTuple):
    """A range of this process's addresses that shows a range of its file."""

    address: int
    nbytes: int
    offset: int
    """In the file."""


def new_file() -> int:
    """Return the descriptor of a new file without a name, which others can open and map, and which never shrinks.

    Raises:
        OSError: there may be none.
    """
    number = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # What somebody has mapped is never cut off: reading it would end him.
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return number


def open_file(pid: int, number: int, inode: int, write: bool = False) -> int:
    """Open the file that another process has open at a descriptor; who calls closes it.

    Raises:
        OSError: that is not allowed, it is not that file any more, or it could be cut off while it is mapped.
    """
    # What is no memory may not be ready to be opened.
    mode = os.O_RDWR if write else os.O_RDONLY
    file = os.open(f"/proc/{pid}/fd/{number}", mode | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.fstat(file).st_ino != inode:
            raise OSError(errno.ESTALE, "its file is not there any more")
        if not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(errno.EPERM, "its file could be cut off")
    except BaseException:
        os.close(file)
        raise
    return file


class _File:
    """No part of it is used twice."""

    def __init__(self) -> None:
        self.pid, self.number = os.getpid(), new_file()
        self.inode = os.fstat(self.number).st_ino
        self.nbytes = 0

    def places(self) -> list[Place]:
        """Return where this process has mapped it to write, by address; a reader of its own process maps it, too."""
        found = []
        with open("/proc/self/maps") as file:
            for line in file:
                addresses, rights, offset, _, inode, *name = line.split(maxsplit=5)
                if int(inode) == self.inode and rights[1] == "w" and name[:1] == [f"/memfd:{_NAME} (deleted)\n"]:
                    begin, end = (int(address, 16) for address in addresses.split("-"))
                    found.append(Place(begin, end - begin, int(offset, 16)))
        return found

    def take(self, nbytes: int) -> int:
        """Return the offset of a new part, which is zeros.

        Raises:
            OSError: there may be none.
        """
        begin, self.nbytes = self.nbytes, self.nbytes + nbytes
        os.ftruncate(self.number, self.nbytes)
        return begin

    def write(self, content: memoryview, offset: int) -> None:
        """Write there.

        Raises:
            OSError: there is no room.
        """
        done = 0
        while done < len(content):
            done += os.pwrite(self.number, content[done:], offset + done)

    def give_back(self) -> None:
        """Free what is not mapped here any more; what was free may have got pages since, if another has read it."""
        begin = 0
        for place in [*sorted(self.places(), key=lambda place: place.offset), Place(0, 0, self.nbytes)]:
            if place.offset > begin:
                _libc.fallocate(self.number, _PUNCH_HOLE | _KEEP_SIZE, begin, place.offset - begin)
            begin = max(begin, place.offset + place.nbytes)


_file: _File | None = None


def _own_file() -> _File | None:
    """Return this process's file; None: it has none, though one that it was forked from may have."""
    return _file if _file is not None and _file.pid == os.getpid() else None


def share(storages: Iterable[torch.UntypedStorage], keep: bool) -> None:
    """Put storages of a CPU where others can map them; nobody may use them meanwhile.

    What is smaller than :data:`LEAST`, or not mapped alone by the C library, stays where it is, as does all where the
    kernel gives no such file.

    Args:
        keep: their values; else these are undefined afterwards.

    Raises:
        MemoryError: the kernel has taken pages away and gives no others for them.
    """
    global _file
    chosen = [storage for storage in storages if storage.device.type == "cpu" and storage.nbytes() >= LEAST]
    if not chosen or not _known_allocator():
        return
    with _lock:
        try:
            file = _file = _own_file() or _File()
            known = file.places()
            gaps: list[torch.Tensor] = []
            for storage in sorted(chosen, key=torch.UntypedStorage.nbytes):  # what fills the small gaps fills all
                if _find(known, storage.data_ptr()) is None and _have_mapped(storage, keep, gaps):
                    _replace(file, storage, keep)
        except OSError as error:
            _log.info("state lies in memory of its own, which others read more slowly: %s", error)


def places(tensors: Iterable[torch.Tensor]) -> tuple[int, int, list[Place]]:
    """Return where tensors of this process lie in its file; what lies elsewhere is left out.

    Returns:
        the file's descriptor and inode, and the places.
    """
    file = _own_file()
    if file is None:
        return -1, -1, []
    with _lock:
        known = file.places()
    found = {_find(known, tensor.untyped_storage().data_ptr()) for tensor in tensors}
    return file.number, file.inode, sorted(place for place in found if place is not None)


def give_back() -> None:
    """Free pages of storages that are gone, also where another process has them mapped: it reads zeros then."""
    file = _own_file()
    if file is not None:
        with _lock:
            file.give_back()


def _find(places: Sequence[Place], address: int) -> Place | None:
    """Return the place that holds an address, of places that are in order."""
    at = bisect.bisect_right(places, address, key=lambda place: place.address) - 1
    return places[at] if at >= 0 and address < places[at].address + places[at].nbytes else None


def map_part(number: int, offset: int, nbytes: int) -> NDArray[np.uint8]:
    """Map a part of another process's file to read it; it is unmapped when nothing refers to the result any more.

    Python's own :class:`mmap.mmap` keeps a descriptor for each.

    Args:
        number: descriptor of the file, here, which may be closed afterwards.

    Raises:
        OSError: it cannot be mapped.
    """
    address = _map(None, nbytes, mmap.PROT_READ, 0, number, offset)
    found = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
    weakref.finalize(found, _libc.munmap, ctypes.c_void_p(address), ctypes.c_size_t(nbytes)).atexit = False
    return found


@cache
def _known_allocator() -> bool:
    """Return whether torch's memory comes from glibc, not from a library that was loaded in its place."""
    try:
        return any(_stands_alone(torch.empty(size, dtype=torch.uint8).untyped_storage()) for size in _CERTAINLY_MAPPED)
    except RuntimeError:  # there is a limit on addresses
        return False


def _have_mapped(storage: torch.UntypedStorage, keep: bool, gaps: list[torch.Tensor]) -> bool:
    """Return whether the C library has mapped a storage alone, if need be after it was allocated once more.

    Args:
        gaps: what fills free places in the C library's heap meanwhile; more are added.
    """
    if _stands_alone(storage):
        return True
    if not storage.resizable():
        return False
    nbytes, values = storage.nbytes(), torch.empty(0, dtype=torch.uint8).set_(storage).clone() if keep else None
    with _mapping_all():
        size = 0 if gaps else _USUAL_THRESHOLD
        while size >= nbytes:  # large free places first, which would take many of the others
            gaps.append(torch.empty(size, dtype=torch.uint8))
            if _stands_alone(gaps[-1].untyped_storage()):
                gaps.pop()
                size //= 2
        while not _stands_alone(storage) and len(gaps) < _MOST_GAPS:
            storage.resize_(0)
            gaps.append(torch.empty(nbytes, dtype=torch.uint8))  # takes the place that it had, so that it gets another
            storage.resize_(nbytes)
    if values is not None:
        torch.empty(0, dtype=torch.uint8).set_(storage).copy_(values)
    return _stands_alone(storage)


@contextmanager
def _mapping_all() -> Iterator[None]:
    """Run a block in which the C library maps what it allocates and has no gap for."""
    _libc.mallopt(_M_MMAP_THRESHOLD, LEAST)
    try:
        yield
    finally:
        # Once told, it does not adapt them any more; this is what it comes to by itself in training.
        _libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_THRESHOLD)
        _libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL_THRESHOLD)


def _stands_alone(storage: torch.UntypedStorage) -> bool:
    """Return whether a storage has pages of its own, which the C library unmaps when it is freed.

    glibc says so in the two words in front of it: the bytes from the first page's begin to these words, and those from
    there to the last page's end, with a flag. Other libraries have no words there that fit the storage's size.
    """
    address = storage.data_ptr()
    before = address % _PAGE - 2 * _WORD
    if before < 0:
        return False
    lead, size = (ctypes.c_size_t * 2).from_address(address - 2 * _WORD)
    flags, size = size & _FLAGS, size & ~_FLAGS
    behind = lead + size - address % _PAGE - storage.nbytes()
    return bool(flags == _MAPPED and lead == before and (lead + size) % _PAGE == 0 and 0 <= behind < 2 * _PAGE)


def _replace(file: _File, storage: torch.UntypedStorage, keep: bool) -> None:
    """Replace the pages of a storage that stands alone; values that are kept are there twice for a part at a time only.

    Raises:
        OSError: there is no room; some pages may be replaced, and values are what they were.
        MemoryError: the kernel has taken pages away and gives no others for them.
    """
    first = storage.data_ptr() // _PAGE * _PAGE
    nbytes = -(-(storage.data_ptr() + storage.nbytes() - first) // _PAGE) * _PAGE
    offset, step = file.take(nbytes), _AT_A_TIME if keep else nbytes
    for begin in range(0, nbytes, step):
        size = min(step, nbytes - begin)
        kept: Any = (ctypes.c_char * (size if keep else _PAGE)).from_address(first + begin)  # glibc's words, too
        file.write(memoryview(kept).cast("B"), offset + begin)
        try:
            _map(first + begin, size, mmap.PROT_READ | mmap.PROT_WRITE, _MAP_FIXED, file.number, offset + begin)
        except OSError as error:
            raise MemoryError(f"no pages for {size} bytes of state: {error.strerror}") from error


def _map(address: int | None, nbytes: int, rights: int, flags: int, number: int, offset: int) -> int:
    found = _libc.mmap(address, nbytes, rights, mmap.MAP_SHARED | flags, number, offset)
    if found == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found or 0)
