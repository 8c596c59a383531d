"""Another process, whose memory tests read; what it runs is told to it function by function."""

from __future__ import annotations

import ctypes
import logging
import mmap
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import msgspec
import torch

from liver_slurm.parallel import shared_memory
from liver_slurm.parallel.shared_memory import LEAST, _known_allocator, give_back, places, share
from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.one_sided.description import Description, Proof, View, own_proof, view_of
from liver_slurm.transfer.one_sided.process_memory import ProcessReader, let_others_read, regions

PATIENCE = 120.0
_NOBODY = 65534
_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)
_words: list[torch.Tensor] = []
"""Counters, which live in this process until it ends."""
_kept: list[list[torch.Tensor]] = []
"""Views, which live until :func:`drop`."""


class OtherProcess:
    """A process of this machine that does what it is told."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of an importable module returns there."""
        self.begin(function, *arguments)
        return self.result()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have it called; :meth:`result` has what it returns."""
        self._connection.send((function, arguments))

    def result(self) -> Any:
        """What was begun last returns."""
        assert self._connection.poll(PATIENCE)
        returned, found = self._connection.recv()
        if not returned:
            raise found
        return found

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.join(PATIENCE)
        assert not self.process.is_alive()

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self.kill()


def _serve(connection: Any) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except Exception as error:  # noqa: BLE001 - whoever called raises it
            answer = False, error
        connection.send(answer)


@dataclass(frozen=True)
class Recipe:
    """How to make a view whose elements lie wherever in memory; the same in every process."""

    dtype: str
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    """For each axis, the distance of its elements in the storage's axis; 0: all are one element."""
    order: tuple[int, ...]
    """Of the axes in the storage."""
    seed: int

    def make(self) -> torch.Tensor:
        """Random bytes, so that floats are NaN, infinite and subnormal, too."""
        dtype = getattr(torch, self.dtype)
        room = [max(1, size * max(1, step)) for size, step in zip(self.shape, self.steps, strict=True)]
        count = 1
        for size in room:
            count *= size
        words = torch.Generator().manual_seed(self.seed)
        data = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=words)
        view = data.view(dtype).view([room[axis] for axis in self.order])
        view = view.permute([self.order.index(axis) for axis in range(len(room))])
        for axis, (size, step) in enumerate(zip(self.shape, self.steps, strict=True)):
            if step == 0:
                view = view.narrow(axis, 0, 1).expand(*view.shape[:axis], size, *view.shape[axis + 1 :])
            else:
                view = view[(slice(None),) * axis + (slice(0, size * step, step),)]
        assert view.shape == self.shape
        return view


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, NaNs included."""
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    whole = [each.contiguous() for each in (one, other)]
    return memory(whole[0]) == memory(whole[1])


def described(proof: Proof | None = None, counter: View | None = None) -> Description:
    """What a receiver needs of this process to read it."""
    let_others_read()
    word = torch.zeros(1, dtype=torch.int64)
    _words.append(word)
    return Description("here", os.getpid(), proof or own_proof(), [], counter or view_of(word), [])


class _Said(logging.Handler):
    """What is logged of shared memory from now on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logger = logging.getLogger(shared_memory.__name__)
        logger.setLevel(logging.INFO)
        logger.handlers[:] = [self]

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def make(*recipes: Recipe) -> list[View]:
    """Keep such views here."""
    found = [recipe.make() for recipe in recipes]
    _kept.append(found)
    return [view_of(view) for view in found]


def make_shared(*recipes: Recipe) -> tuple[list[View], Description]:
    """Keep such views here, in memory that others can map, and say what they need for that."""
    found, said = [], _Said()
    for recipe in recipes:
        view = recipe.make()
        storage, room = view.untyped_storage(), torch.zeros(view.untyped_storage().nbytes() + LEAST, dtype=torch.uint8)
        room[: storage.nbytes()] = torch.empty(0, dtype=torch.uint8).set_(storage)
        share([room.untyped_storage()], keep=True)
        place = view.storage_offset(), view.shape, view.stride()
        found.append(torch.empty(0, dtype=view.dtype).set_(room.untyped_storage(), *place))
        assert places([room])[2], f"it cannot be mapped: known allocator {_known_allocator()}; {said.lines}"
    _kept.append(found)
    return [view_of(view) for view in found], msgspec.structs.replace(described(), regions=regions(found))


def drop() -> None:
    """Keep no views any more."""
    _kept.clear()
    give_back()


def pages_with_a_hole(before: int, after: int) -> int:
    """Map so many pages, a page that is not there, and so many pages; the bytes of a page are its number modulo 256."""
    _libc.mmap.restype, _libc.munmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t)
    _libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    size, pages = mmap.PAGESIZE, before + 1 + after
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = int(_libc.mmap(None, pages * size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0))
    for page in range(pages):
        ctypes.memset(address + page * size, page % 256, size)
    assert _libc.munmap(address + before * size, size) == 0
    return address


def hide() -> None:
    """Be a process that nobody without special rights may read."""
    become_nobody()
    assert _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0


def become_nobody() -> None:
    """Give up special rights, where this process has any."""
    if os.geteuid() == 0:
        os.setuid(_NOBODY)


def try_to_read(owner: Description) -> str:
    """Open its memory; what is said if that fails."""
    try:
        ProcessReader(owner).close()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return f"{type(error).__name__}: {error}"
    return ""
