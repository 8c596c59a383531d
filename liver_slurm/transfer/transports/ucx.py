"""Messages through UCX (RDMA where there is any), by way of nixl: an extra, imported nowhere else.

As in shared memory, pieces go through a ring, and their digests on the pair's connection say that they are there; but
each end has its own ring, and the receiver reads a piece out of the sender's into its own. Rings are registered once,
so buffers need not be. Who has nothing under way sleeps on the connection; a message that is under way is asked for
again and again at both ends, because nixl has nothing to wait on: its own thread would ask all the time, on a core for
each pair.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import select
import socket
import struct
import time
from typing import Any

import torch

from liver_slurm.transfer.transports.mesh import receive_exactly
from liver_slurm.transfer.transports.shared_memory import PIECE_BYTES, PIECES, RING_BYTES, RingReceiver, RingSender

_OFFER = struct.Struct("<IQ")
"""Length of the sender's metadata, which follows, and the address of its ring."""
_ASK_AGAIN = 20e-6
"""Seconds; a piece takes 200 microseconds at 5 GB/s."""


class UcxSender(RingSender):
    """The sending end of one ordered pair."""

    def __init__(self, connection: socket.socket) -> None:
        """Registers the ring and offers it.

        Raises:
            OSError: the peer is gone.
        """
        self._connection = connection
        self._ring = self._registered = _RegisteredRing()
        metadata = self._registered.agent.get_agent_metadata()
        connection.sendall(_OFFER.pack(len(metadata), self._registered.at(0)) + metadata)
        self._heard = select.poll()
        self._heard.register(connection, select.POLLIN)
        self._piece, self._free = 0, PIECES

    def send(self, header: bytes, buffer: torch.Tensor) -> None:
        """Send a header and a contiguous uint8 tensor; returns when the peer has read all of it.

        Raises:
            OSError: the peer is gone.
        """
        super().send(header, buffer)
        while self._free < PIECES:  # what lies in a ring that only this process has would go with it
            self._free += self._taken(PIECES - self._free)

    def _taken(self, most: int) -> int:
        while not self._heard.poll(0):
            self._registered.agent.get_new_notifs()  # where the wire cannot read by itself, UCX answers in here
            time.sleep(_ASK_AGAIN)
        return super()._taken(most)


class UcxReceiver(RingReceiver):
    """The receiving end of one ordered pair."""

    def __init__(self, connection: socket.socket) -> None:
        """Registers a ring, and takes the offer; waits for the peer to send something.

        Raises:
            OSError: the peer is gone.
        """
        self._connection = connection
        offer = bytearray(_OFFER.size)
        receive_exactly(connection, memoryview(offer))
        length, self._remote = _OFFER.unpack(offer)
        metadata = bytearray(length)
        receive_exactly(connection, memoryview(metadata))
        self._ring = self._registered = _RegisteredRing()
        self._peer = self._registered.agent.add_remote_agent(bytes(metadata))
        self._hang_up = select.poll()
        self._hang_up.register(connection, select.POLLRDHUP)
        self._piece = 0

    def _fetch(self, address: int, length: int) -> None:
        agent, here = self._registered.agent, self._ring.at(self._piece)
        there = self._remote + here - self._ring.at(0)
        handle = agent.initialize_xfer("READ", _place(agent, here, length), _place(agent, there, length), self._peer)
        try:
            state = agent.transfer(handle)
            while state == "PROC":
                if self._hang_up.poll(0):
                    raise ConnectionResetError("it hung up")
                time.sleep(_ASK_AGAIN)
                state = agent.check_xfer_state(handle)
        finally:
            agent.release_xfer_handle(handle)
        if state != "DONE":
            raise ConnectionResetError(f"UCX could not read from it: {state}")
        ctypes.memmove(address, here, length)


class _RegisteredRing:
    """A ring with an agent of its own, so that no two threads use one."""

    def __init__(self) -> None:
        self.agent = _agent()
        self._memory = torch.zeros(RING_BYTES, dtype=torch.uint8)
        self._registered = self.agent.register_memory(self._memory)

    def at(self, piece: int) -> int:
        """See :class:`~liver_slurm.transfer.transports.shared_memory.Ring`."""
        return int(self._memory.data_ptr()) + piece % PIECES * PIECE_BYTES


def use_interface(interface: str | None) -> None:
    """Tell UCX, before its first agent, which network interface to use; what the environment says goes first."""
    if interface is not None:
        os.environ.setdefault("UCX_NET_DEVICES", interface)


def _agent() -> Any:
    from nixl._api import nixl_agent, nixl_agent_config

    logging.getLogger("nixl").handlers.clear()  # they write to stdout; without one, warnings go to stderr
    config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
    return nixl_agent(f"liver-slurm-{secrets.token_hex(8)}", config)


def _place(agent: Any, address: int, length: int) -> Any:
    return agent.get_xfer_descs([(address, length, 0)], mem_type="DRAM")
