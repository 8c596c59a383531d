"""Memory of a shard's state: count it, touch it, free it, and give Adam's moments storage layer by layer."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator

import torch

from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import LayerFilter, every_layer
from liver_slurm.parallel import shared_memory


def held_bytes(*states: TrainingShard | None) -> int:
    """Return the bytes of weights, gradient buffers, masters and moments; what several states share counts once."""
    return sum(storage.nbytes() for storage in _storages(*states).values())


def show(state: TrainingShard) -> None:
    """Put state that nobody trains yet, with its values, where other processes of this machine can map it."""
    shared_memory.share(_storages(state).values(), keep=True)


def touch(state: TrainingShard, live: TrainingShard | None) -> None:
    """Make the pages of storage that ``state`` does not share with ``live`` resident; its values are undefined.

    They are pages that other processes of this machine can map.

    On a CPU a page is allocated at the first write, which would take half of the time of writing a received box. GPU
    memory is resident once it is allocated.
    """
    own = _own(state, live)
    shared_memory.share(own, keep=False)
    for storage in own:
        if storage.device.type == "cpu":
            torch.empty(0, dtype=torch.uint8).set_(storage).zero_()


def release(state: TrainingShard, live: TrainingShard | None) -> None:
    """Free the storage that ``state`` does not share with ``live``; nothing may use it afterwards.

    Models and optimizers are parts of reference cycles. Python collects old cycles so seldom that a dozen
    reconfigurations would leave a dozen worlds in memory.
    """
    state.clear_caches()  # first, as it ends what may use the storage
    for storage in _own(state, live):
        if storage.resizable():  # else :func:`reclaim` finds it
            storage.resize_(0)
    shared_memory.give_back()


def reclaim() -> None:
    """Free what is left of worlds that are over or were given up: cycles, process groups, and the C library's heap.

    It stalls all threads of this process for some hundredths of a second, so no step should wait for it.
    """
    gc.collect()
    shared_memory.give_back()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only: another thread seldom reuses freed heap
    if trim is not None:
        trim(0)


def _own(state: TrainingShard, live: TrainingShard | None) -> list[torch.UntypedStorage]:
    kept = _storages(live)
    return [storage for place, storage in _storages(state).items() if place not in kept]


def _storages(*states: TrainingShard | None) -> dict[int, torch.UntypedStorage]:
    """Return the storages of the shards by address; tensors that have no storage now are left out."""
    found = {}
    for state in filter(None, states):
        for tensor in state.tensors():
            storage = tensor.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage
    return found


class Moments:
    """Adam's moments of one shard that the other world does not share, by layer; -1: no layer."""

    def __init__(self, state: TrainingShard | None, other: TrainingShard | None) -> None:
        """
        Args:
            other: shard of the other world; moments that it keeps in the same tensors are left alone.
        """
        self._by_layer: dict[int, list[torch.Tensor]] = {}
        shared = {id(moment) for _, moment in other.moments()} if other is not None else set()
        if state is not None:
            for layer, moment in state.moments():
                if id(moment) not in shared:
                    self._by_layer.setdefault(layer, []).append(moment)

    def allocate(self, chosen: LayerFilter) -> None:
        """Give the moments of the chosen layers storage, with undefined values."""
        moments = list(self._of(chosen))
        for moment in moments:
            moment.untyped_storage().resize_(moment.numel() * moment.element_size())
        shared_memory.share([moment.untyped_storage() for moment in moments], keep=False)

    def free(self, chosen: LayerFilter) -> None:
        """Free the storage of the chosen layers' moments; views of it must not be used afterwards."""
        for moment in self._of(chosen):
            moment.untyped_storage().resize_(0)
        shared_memory.give_back()

    def check(self) -> None:
        """Check that the moments' storage can be resized, before there is no way back.

        Raises:
            RuntimeError: ``Tensor.numpy()`` was called on one of them, or it is shared with another process.
        """
        if not all(moment.untyped_storage().resizable() for moment in self._of(every_layer)):
            raise RuntimeError("the storage of Adam's moments is used by something else, so it cannot be freed")

    def _of(self, chosen: LayerFilter) -> Iterator[torch.Tensor]:
        for layer, moments in self._by_layer.items():
            if chosen(layer):
                yield from moments
