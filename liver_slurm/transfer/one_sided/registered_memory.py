"""RDMA reads of registered memory, by nixl over UCX: an extra, imported nowhere else.

Memory at both ends is registered in PREPARE, as that pins it. Where the wire cannot read by itself, UCX answers in a
call of the owner's, whose thread makes such calls while something is being read: nixl has nothing to wait on, and its
own thread would ask all the time, on a core for each agent. Gradients and counters come over the line.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from liver_slurm.base.errors import TransferError, first_line
from liver_slurm.transfer.one_sided.description import Description, Refusal, View, dtype_of, view_of
from liver_slurm.transfer.one_sided.line import Line
from liver_slurm.transfer.one_sided.memory_ranges import Ranges, contiguous_run, ranges
from liver_slurm.transfer.one_sided.network import NetworkReader
from liver_slurm.transfer.one_sided.staging import Staging

log = logging.getLogger(__name__)

_ASK_AGAIN = 20e-6
"""Seconds; 16 MiB take 3 milliseconds at 5 GB/s."""
_TRIAL = 20.0
"""Seconds in which the first word must have been read."""


def _refusal(what: str, error: Exception) -> Refusal:
    """Return why a peer is read otherwise; that is news where nixl is installed."""
    said = f"{what}: {first_line(error)}"
    if not isinstance(error, ImportError):
        log.warning("%s", said)
    return Refusal(said)


class Agent:
    """This process's end of one transfer: memory that others read, or that is read into. Any thread may call."""

    def __init__(self, device: torch.device, interface: str | None) -> None:
        """
        Raises:
            Refusal: nixl is not there, or cannot be used.
        """
        # A socket's interface is to UCX a device for TCP: with its name UCX would leave RDMA out. UCX is told of the
        # loopback alone, before it looks; what the environment says goes first.
        if interface == "lo":
            os.environ.setdefault("UCX_NET_DEVICES", interface)
        try:
            from nixl._api import nixl_agent, nixl_agent_config

            logging.getLogger("nixl").handlers.clear()  # they write to stdout; without one, warnings go to stderr
            config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent: Any = nixl_agent(f"liver-slurm-{secrets.token_hex(8)}", config)
        except Exception as error:
            raise _refusal("nixl cannot be used", error) from error
        self._kind, self._number = ("VRAM", device.index or 0) if device.type == "cuda" else ("DRAM", 0)
        self._lock = threading.Lock()
        self._registered: dict[tuple[int, int], tuple[torch.UntypedStorage, Any]] = {}
        """By address and bytes: the storage, so that nobody else gets its memory, and its registration."""

    def register(self, tensors: Iterable[torch.Tensor]) -> None:
        """Register the storages of these, unless they are; those that have no memory yet are left out.

        Raises:
            Refusal: the wire's driver does not take them.
        """
        storages = {_place_of(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
        with self._lock:
            try:
                self._forget_freed()
                for (place, size), storage in storages.items():
                    if size and (place, size) not in self._registered:
                        registered = self._agent.register_memory([(place, size, self._number, "")], self._kind)
                        self._registered[place, size] = storage, registered
            except Exception as error:
                raise _refusal("memory cannot be registered", error) from error

    def _forget_freed(self) -> None:
        """Give back what is registered of storages that were freed: what lies there next has other pages."""
        for key, (storage, registered) in [*self._registered.items()]:
            if _place_of(storage) != key:
                del self._registered[key]
                self._agent.deregister_memory(registered)

    def metadata(self) -> bytes:
        """Return what a reader needs, once all is registered."""
        return bytes(self._agent.get_agent_metadata())

    def turn(self) -> None:
        """Answer for a moment, where the wire cannot read by itself."""
        with self._lock:
            self._agent.get_new_notifs()
        time.sleep(_ASK_AGAIN)

    def meet(self, metadata: bytes) -> Any:
        """Return the name of another agent.

        Raises:
            Refusal: it says what cannot be understood.
        """
        try:
            return self._agent.add_remote_agent(metadata)
        except Exception as error:
            raise _refusal("its nixl agent cannot be met", error) from error

    def read(self, peer: Any, device_number: int, there: Ranges, here: Ranges, go_on: Any) -> None:
        """Read ranges into ranges, [n, 2] each, that are as long pair by pair.

        Args:
            go_on: called again and again; raises where it is to be given up.

        Raises:
            TransferError: it failed.
        """
        with self._lock:
            sides = self._places(here, self._number), self._places(there, device_number)
            handle = self._agent.initialize_xfer("READ", *sides, peer)
            try:
                state = self._agent.transfer(handle)
                while state == "PROC":
                    go_on()
                    time.sleep(_ASK_AGAIN)
                    state = self._agent.check_xfer_state(handle)
            finally:
                self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise TransferError(f"UCX could not read: {state}")

    def close(self) -> None:
        """Give the registrations back."""
        with self._lock:
            for _, registered in self._registered.values():
                self._agent.deregister_memory(registered)
            self._registered, self._agent = {}, None

    def _places(self, some: Ranges, number: int) -> Any:
        places = np.empty((len(some), 3), dtype=np.uint64)
        places[:, :2], places[:, 2] = some, number
        return self._agent.get_xfer_descs(places, mem_type=self._kind)


def _place_of(storage: torch.UntypedStorage) -> tuple[int, int]:
    return storage.data_ptr(), storage.nbytes()


class RegisteredReader(NetworkReader):
    def __init__(self, owner: Description, agent: Agent, line: Line, device: torch.device, staging: Staging) -> None:
        """
        Raises:
            Refusal: its memory is not registered, or a first word of it cannot be read.
        """
        super().__init__(line, device, staging)
        if not owner.agent:
            raise Refusal("its memory is not registered with nixl")
        self._agent, self._owner = agent, owner
        self._until = time.monotonic() + _TRIAL
        self._firsts = [box.state[0].number for box in owner.boxes]
        word = torch.zeros(1, dtype=torch.int64, device=device)
        try:
            agent.register([word])
            self._peer = agent.meet(owner.agent)
            self.copy([word], [owner.counter])
        except TransferError as error:
            raise Refusal(str(error)) from error
        self._until = float("inf")

    def expect(self, targets: Iterable[torch.Tensor]) -> None:
        self._agent.register(targets)

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[View]) -> None:
        here: list[Ranges] = []
        there: list[Ranges] = []
        for target, source in zip(targets, sources, strict=True):
            place = view_of(target)
            run = min(contiguous_run(place), contiguous_run(source))
            here.append(ranges(place, run))
            there.append(ranges(source, run))
        if not any(target.numel() for target in targets):
            return
        there_, here_ = (side[side[:, 1] > 0] for side in map(np.concatenate, (there, here)))
        last = max(source.number for source in sources)
        boxes = int(np.searchsorted(self._firsts, last, side="right"))
        number = self._owner.device_number
        self._line.turned(boxes, lambda: self._agent.read(self._peer, number, there_, here_, self._go_on))

    def fetch(self, sources: Sequence[View]) -> list[torch.Tensor]:
        """Return copies that come over the line, for an owner may keep copies of gradients elsewhere."""
        targets = [torch.empty(source.shape, dtype=dtype_of(source.dtype), device=self._device) for source in sources]
        super().copy(targets, sources)
        return targets

    def _go_on(self) -> None:
        if self._line.hung_up():
            raise ConnectionResetError("it hung up")
        if time.monotonic() > self._until:
            raise TransferError(f"nothing was read by nixl in {_TRIAL:g} s")
