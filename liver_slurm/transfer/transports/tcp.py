"""Messages over a plain stream socket: the kernel copies straight out of and into the callers' buffers."""

from __future__ import annotations

import socket

import torch

from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.transports.mesh import receive_exactly


def send(connection: socket.socket, header: bytes, buffer: torch.Tensor) -> None:
    """Send a header and a contiguous uint8 tensor.

    Raises:
        OSError: the peer is gone.
    """
    payload = memory(buffer)
    sent = connection.sendmsg([header, payload])
    if sent < len(header) + len(payload):
        connection.sendall(memoryview(header)[sent:])
        connection.sendall(payload[max(0, sent - len(header)) :])


def receive(connection: socket.socket, buffer: torch.Tensor) -> None:
    """Fill a contiguous uint8 tensor with what follows a header.

    Raises:
        OSError: the peer is gone.
    """
    receive_exactly(connection, memory(buffer))
