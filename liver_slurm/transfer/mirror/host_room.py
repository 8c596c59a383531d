"""Host memory for snapshots and for images of target worlds, which a card reaches by itself while kernels run.

To get such memory, and to give it back, takes seconds in which other threads can launch nothing on the card. So a
worker keeps what it has: the mirrors of a world wait for those of the world before to end, and take over their memory.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch

from liver_slurm.base.errors import TransferError

PAGE = 4096
_FOR_KERNELS = 3
"""``cudaHostRegisterPortable | cudaHostRegisterMapped``: at the same address on every card."""


class HostRoom:
    """A run of host memory, which begins with a page and is zero at first."""

    def __init__(self, nbytes: int, card: torch.device | None) -> None:
        """
        Args:
            nbytes: of ``data``; more than 0.
            card: whose copy engine is to reach it; None: none.

        Raises:
            OSError, RuntimeError: the memory cannot be had, or not be registered.
        """
        # Private, as the kernel seldom gives shared memory large pages; and not for children: after a fork, what is
        # written would move to a page that the card knows nothing of.
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_DONTFORK)
        # Small pages take longer to get, to register, and to give back when this process is killed, which others wait
        # for. A kernel without large ones refuses, and small ones will do.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.data = torch.frombuffer(memory, dtype=torch.uint8)
        self._registered = False
        if card is not None:
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


class Rooms:
    """A worker's rooms; any thread may call."""

    def __init__(self, card: torch.device | None) -> None:
        self._card = card
        self._changed = threading.Condition()
        self._spare: list[HostRoom] = []
        self._leases: list[Lease] = []

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

    def take(self, nbytes: int) -> HostRoom:
        """Return a spare room of at least so many bytes, or a new one in place of one that is too small."""
        with self._changed:
            self._spare.sort(key=lambda room: room.data.numel())
            fitting = next((room for room in self._spare if room.data.numel() >= nbytes), None)
            if fitting is not None:
                self._spare.remove(fitting)
                return fitting
            too_small = self._spare.pop() if self._spare else None
        if too_small is not None:
            too_small.close()
        return HostRoom(_rounded(nbytes), self._card)

    def end(self, lease: Lease, taken: list[HostRoom]) -> None:
        """Take back what a lease had."""
        with self._changed:
            if lease in self._leases:
                self._leases.remove(lease)
            self._spare += taken
            self._changed.notify_all()

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

    def take(self, nbytes: int) -> torch.Tensor:
        """Return so many bytes, uint8, which begin with a page; what is in them is undefined.

        Raises:
            OSError, RuntimeError: the memory cannot be had, or not be registered.
            TransferError: the lease is given up.
        """
        self.await_turn()
        self._taken.append(self._rooms.take(nbytes))
        return self._taken[-1].data[:nbytes]

    def give_up(self) -> None:
        """Throw out whoever waits; rooms that were taken stay until :meth:`end`."""
        self.given_up = True
        self._rooms.wake()

    def end(self) -> None:
        """Give the rooms back, as nobody uses them any more."""
        self.given_up = True
        taken, self._taken = self._taken, []
        self._rooms.end(self, taken)


def _rounded(nbytes: int) -> int:
    """Return so many bytes and up to an eighth more: in another layout a rank's state seldom has the same size."""
    step = max(PAGE, 1 << max(0, nbytes.bit_length() - 4))
    return -(-nbytes // step) * step
