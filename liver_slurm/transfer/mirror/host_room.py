"""Host memory for snapshots and for images of target worlds, which a card reaches by itself while kernels run.

To get such memory, and to give it back, takes seconds in which other threads can launch nothing on the card. So a
worker keeps what it has: the mirrors of a world wait for those of the world before to end, and take over their memory.
Processes of one machine share it where one is to read what another has written after that one's end.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import weakref
from collections import Counter

import msgspec
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel import shared_memory

PAGE = 4096
_FOR_KERNELS = 3
"""``cudaHostRegisterPortable | cudaHostRegisterMapped``: at the same address on every card."""


class HostRoom:
    """A run of host memory, which begins with a page and is zero at first."""

    def __init__(self, nbytes: int, card: torch.device | None, shared: bool = False, file: int = -1) -> None:
        """
        Args:
            nbytes: of ``data``; more than 0.
            card: whose copy engine is to reach it; None: none.
            shared: other processes are to map it.
            file: descriptor of another process's shared room, which this one is to be, content and all; -1: none. It is
                closed with the room, or if this fails.

        Raises:
            OSError, RuntimeError: the memory cannot be had, or not be registered.
        """
        self.file = shared_memory.new_file() if shared and file < 0 else file
        """Descriptor that others open; -1: the memory is this process's alone."""
        # A room that is only dropped gives it back as well.
        self._close_file = weakref.finalize(self, os.close, self.file) if self.file >= 0 else None
        self.shared, self._registered = shared, False
        self.data = torch.empty(0, dtype=torch.uint8)
        try:
            self._map(nbytes, card, fresh=file < 0)
        except BaseException:
            self.close()
            raise

    def _map(self, nbytes: int, card: torch.device | None, fresh: bool) -> None:
        # Private where it may be, as the kernel seldom gives shared memory large pages.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if self.file < 0 else mmap.MAP_SHARED
        if fresh and self.file >= 0:
            os.ftruncate(self.file, nbytes)
        memory = mmap.mmap(self.file, nbytes, flags=flags)
        # Not for children: after a fork, what is written would move to a page that the card knows nothing of.
        memory.madvise(mmap.MADV_DONTFORK)
        # Small pages take longer to get, to register, and to give back when this process is killed, which others wait
        # for. A kernel without large ones refuses, and small ones will do.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.data = torch.frombuffer(memory, dtype=torch.uint8)
        if card is not None:
            if fresh:
                self.data.zero_()  # so that pages are there: to make them is the slow part, and this holds nobody up
            with torch.cuda.device(card):
                runtime = torch.cuda.cudart()
                torch.cuda.check_error(runtime.cudaHostRegister(self.data.data_ptr(), nbytes, _FOR_KERNELS))
            self._registered = True

    def close(self) -> None:
        """Give it back; nothing may be written to it any more."""
        if self._registered:  # what is registered must not be unmapped
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.data.data_ptr()))
            self._registered = False
        self.data = torch.empty(0, dtype=torch.uint8)
        if self._close_file is not None:
            self._close_file()
        self.file = -1


class Places(msgspec.Struct, frozen=True, array_like=True):
    """Where another process of this machine finds shared rooms."""

    pid: int
    files: tuple[tuple[int, int, int], ...]
    """Descriptor there, inode and bytes of each."""


class Rooms:
    """A worker's rooms; any thread may call."""

    def __init__(self, card: torch.device | None) -> None:
        self._card = card
        self._changed = threading.Condition()
        self._spare: list[HostRoom] = []
        self._leases: list[Lease] = []
        self._of_others: dict[tuple[int, int], HostRoom] = {}
        """Rooms of other processes that are mapped here, by process and inode, and"""
        self._used: Counter[tuple[int, int]] = Counter()
        """how many leases use each."""

    @property
    def spare_bytes(self) -> int:
        """Of rooms that nobody uses."""
        with self._changed:
            return sum(room.data.numel() for room in self._spare)

    def lease(self) -> Lease:
        """Rooms for the mirrors of one more world."""
        with self._changed:
            self._leases.append(Lease(self))
            return self._leases[-1]

    def await_turn(self, lease: Lease) -> None:
        """Wait until earlier leases have ended; see :meth:`Lease.await_turn`."""
        with self._changed:
            self._changed.wait_for(lambda: lease.given_up or self._leases[0] is lease)
            if lease.given_up:
                raise TransferError("the mirrors were given up")

    def take(self, nbytes: int, shared: bool = False) -> HostRoom:
        """Return a spare room of at least so many bytes, or a new one in place of one that is too small."""
        with self._changed:
            self._spare.sort(key=lambda room: room.data.numel())
            alike = [room for room in self._spare if room.shared == shared]
            fitting = next((room for room in alike if room.data.numel() >= nbytes), None)
            if fitting is not None:
                self._spare.remove(fitting)
                return fitting
            too_small = self._spare.pop() if self._spare else None
        if too_small is not None:
            too_small.close()
        return HostRoom(_rounded(nbytes), self._card, shared)

    def map(self, pid: int, file: tuple[int, int, int]) -> HostRoom:
        """Return another process's room, see :class:`Places`; one that is mapped already is not mapped again.

        Raises:
            OSError, RuntimeError: it cannot be mapped, or not be registered.
        """
        number, inode, nbytes = file
        with self._changed:
            found = self._of_others.get((pid, inode))
        if found is None:
            opened = shared_memory.open_file(pid, number, inode, write=True)
            if not 0 < nbytes <= os.fstat(opened).st_size:
                os.close(opened)
                raise OSError(errno.EINVAL, "its file is shorter than it says")
            found = HostRoom(nbytes, self._card, shared=True, file=opened)
        with self._changed:
            self._of_others[pid, inode] = found
            self._used[pid, inode] += 1
        return found

    def end(self, lease: Lease, taken: list[HostRoom], mapped: list[tuple[int, int]]) -> None:
        """Take back what a lease had. Of rooms of others, the next one may want the same again; what it does not take
        goes when it ends."""
        with self._changed:
            if lease in self._leases:
                self._leases.remove(lease)
            unused = [self._of_others.pop(key) for key in [*self._of_others] if not self._used[key]]
            self._used.subtract(mapped)
            self._spare += taken
            self._changed.notify_all()
        for room in unused:
            room.close()

    def put_back(self, room: HostRoom) -> None:
        """Keep what :meth:`take` gave, and nobody uses any more, for the next who asks."""
        with self._changed:
            self._spare.append(room)

    def wake(self) -> None:
        """Have those that wait look again."""
        with self._changed:
            self._changed.notify_all()


class Lease:
    """The rooms that the mirrors of one world use."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._taken: list[HostRoom] = []
        self._mapped: list[tuple[int, int]] = []
        self.given_up = False

    def await_turn(self) -> int:
        """Wait until earlier leases have ended.

        Returns:
            bytes of rooms that they have left.

        Raises:
            TransferError: this one is given up.
        """
        self._rooms.await_turn(self)
        return self._rooms.spare_bytes

    def take(self, nbytes: int, shared: bool = False) -> torch.Tensor:
        """Return so many bytes, uint8, which begin with a page; what is in them is undefined.

        Args:
            shared: see :meth:`places`.

        Raises:
            OSError, RuntimeError: the memory cannot be had, or not be registered.
            TransferError: the lease is given up.
        """
        self.await_turn()
        self._taken.append(self._rooms.take(nbytes, shared))
        return self._taken[-1].data[:nbytes]

    def places(self) -> Places:
        """Return where others find the shared rooms that were taken, in order."""
        rooms = [room for room in self._taken if room.shared]
        files = ((room.file, os.fstat(room.file).st_ino, room.data.numel()) for room in rooms)
        return Places(os.getpid(), tuple(files))

    def map(self, places: Places) -> list[torch.Tensor]:
        """Return the rooms that another process has said where they are.

        Raises:
            OSError, RuntimeError: they cannot be mapped, or not be registered.
            TransferError: the lease is given up.
        """
        self.await_turn()
        found = []
        for file in places.files:
            found.append(self._rooms.map(places.pid, file).data)
            self._mapped.append((places.pid, file[1]))
        return found

    def give_up(self) -> None:
        """Throw out whoever waits; rooms that were taken stay until :meth:`end`."""
        self.given_up = True
        self._rooms.wake()

    def end(self) -> None:
        """Give the rooms back, as nobody uses them any more."""
        self.given_up = True
        taken, self._taken = self._taken, []
        mapped, self._mapped = self._mapped, []
        self._rooms.end(self, taken, mapped)


def _rounded(nbytes: int) -> int:
    """Return so many bytes and up to an eighth more: in another layout a rank's state seldom has the same size."""
    step = max(PAGE, 1 << max(0, nbytes.bit_length() - 4))
    return -(-nbytes // step) * step
