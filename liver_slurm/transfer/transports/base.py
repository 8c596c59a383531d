"""What carries state between the members of an old and a new world: one small interface, one group of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel import c10d


class Pending(Protocol):
    """A message under way."""

    def wait(self) -> None:
        """Wait until the buffer may be used again.

        Raises:
            TransferError: the peer is gone, or the transfer was given up.
        """


class Transport(Protocol):
    """Ordered, reliable messages between numbered peers. Lengths are known to both ends beforehand."""

    device: torch.device
    """Where buffers must lie."""

    def connect(self, peers: Iterable[int]) -> None:
        """Meet these peers now, off the critical path; otherwise each is met at the first message.

        Raises:
            TransferError: one of them is gone.
        """

    def send(self, peer: int, *buffers: torch.Tensor) -> Pending:
        """Start sending contiguous uint8 tensors, each a message of its own."""

    def receive(self, peer: int, buffer: torch.Tensor) -> Pending:
        """Start receiving into a contiguous uint8 tensor."""

    def receive_now(self, peer: int, buffer: torch.Tensor) -> None:
        """Receive in the calling thread, for as long as it takes; nothing else may be being received from that peer.

        Raises:
            TransferError: as for :class:`Pending`.
        """

    def abort(self) -> None:
        """Throw whoever waits out with an error; from any thread."""

    def close(self) -> None:
        """Give the connections back."""


class _Work:
    def __init__(self, work: Sequence[Any], device: torch.device) -> None:
        self._work, self._device = work, device

    def wait(self) -> None:
        try:
            for each in self._work:
                each.wait()
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
        except RuntimeError as error:
            raise TransferError(f"a peer went away while state was streamed: {error}") from error


class GroupTransport:
    """Point-to-point messages of a torch process group that spans both worlds: gloo, or NCCL in the pause."""

    def __init__(
        self, store: Any, name: str, peers: int, me: int, backend: str, device: torch.device, timeout: timedelta
    ) -> None:
        """Builds the group; every peer must."""
        self._backend = backend
        self.device = device if backend == "nccl" else torch.device("cpu")
        self._group = c10d.make_group(store, name, list(range(peers)), me, backend, timeout, device)

    def connect(self, peers: Iterable[int]) -> None:
        """The group met all its peers when it was built."""

    def send(self, peer: int, *buffers: torch.Tensor) -> Pending:
        """See :class:`Transport`."""
        return self._post(self._group.send, buffers, peer)

    def receive(self, peer: int, buffer: torch.Tensor) -> Pending:
        """See :class:`Transport`."""
        return self._post(self._group.recv, [buffer], peer)

    def receive_now(self, peer: int, buffer: torch.Tensor) -> None:
        """See :class:`Transport`."""
        self.receive(peer, buffer).wait()

    def _post(self, operation: Any, buffers: Sequence[torch.Tensor], peer: int) -> Pending:
        try:
            return _Work([operation([buffer], peer, 0) for buffer in buffers], self.device)
        except RuntimeError as error:
            raise TransferError(f"a peer went away while state was streamed: {error}") from error

    def abort(self) -> None:
        """See :class:`Transport`."""
        c10d.abort_group(self._group, self._backend)

    def close(self) -> None:
        """See :class:`Transport`."""
        c10d.destroy_group(self._group)
