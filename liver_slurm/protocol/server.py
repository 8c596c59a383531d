"""Coordinator end of the control channel: a CURVE server that admits only holders of the run's client key."""

from __future__ import annotations

import os
import time
from collections import Counter

import msgspec
import zmq

from liver_slurm.protocol.gate import Gate
from liver_slurm.protocol.hang_ups import HangUps
from liver_slurm.protocol.messages import Message, ToCoordinator
from liver_slurm.protocol.wire import decode_to_coordinator, encode
from liver_slurm.rundir import address, keys
from liver_slurm.rundir.paths import RunDir

LARGEST_MESSAGE = 16 << 20
"""Bytes; a peer that sends more is cut off by ZeroMQ. A world of 10,000 members needs less than 1 MiB."""


class ControlServer:
    """ROUTER socket for workers and clients; used from one thread.

    ``rejected`` counts what was dropped: ``strangers`` (callers without the key), ``malformed`` (not one of our
    messages) and ``undelivered`` (messages of ours to peers that were gone).
    """

    def __init__(self, run_dir: RunDir, epoch: int, host: str, bind: str = "0.0.0.0") -> None:
        """Listen on a free port of ``bind``; peers will be told to connect to ``host``.

        Raises:
            ControlError: the run's keys are missing or open to others.
        """
        pairs = keys.load(run_dir.secrets)
        self.rejected: Counter[str] = Counter(strangers=0, malformed=0, undelivered=0)
        self._run_dir = run_dir
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._hang_ups = HangUps()
        self._encoded: tuple[Message | None, bytes] = None, b""
        self._gate = Gate(self._context, self._socket, pairs, self._hang_ups.closed)
        self._socket.linger = 2000
        self._socket.maxmsgsize = LARGEST_MESSAGE
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else messages to a peer that is gone vanish uncounted
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a worker whose connection broke comes back as itself
        self._socket.setsockopt(zmq.SNDHWM, 10_000)
        port = self._socket.bind_to_random_port(f"tcp://{bind}")
        self.address = address.Address(host=host, port=port, epoch=epoch, pid=os.getpid())

    def publish(self) -> None:
        """Publish the address in the run directory, for workers and clients."""
        address.write(self._run_dir.address_file, self.address)

    def receive(self, timeout: float) -> list[tuple[bytes, ToCoordinator]]:
        """Receive all messages that are there, each with its peer; waits up to ``timeout`` seconds for the first."""
        received: list[tuple[bytes, ToCoordinator]] = []
        deadline = time.monotonic() + timeout
        while self._socket.poll(0 if received else max(0, int((deadline - time.monotonic()) * 1000))):
            self._take(self._socket.recv_multipart(copy=False), received)
        self._gate.look()
        self.rejected["strangers"] = self._gate.strangers
        return received

    def hung_up(self, probe: Message) -> list[tuple[bytes, float]]:
        """Return the peers that have closed their connection and not come back, each once, and how many seconds ago.

        Args:
            probe: a message that says nothing new; that it can be sent shows that a peer is back.
        """
        return self._hang_ups.take(lambda peer: self._reaches(peer, probe))

    def _take(self, frames: list[zmq.Frame], received: list[tuple[bytes, ToCoordinator]]) -> None:
        peer = frames[0].bytes
        self._hang_ups.heard(peer, frames[-1], self._gate.look)
        try:
            if len(frames) != 2:
                raise msgspec.DecodeError(f"{len(frames)} frames")
            received.append((peer, decode_to_coordinator(frames[1].bytes)))
        except msgspec.DecodeError:
            self.rejected["malformed"] += 1

    def _reaches(self, peer: bytes, message: Message) -> bool:
        """Send a message; returns whether there is a connection to the peer."""
        return self._send(peer, message) != zmq.EHOSTUNREACH

    def send(self, peer: bytes, message: Message) -> None:
        """Send without waiting; a peer that is gone is detected by its silence, not here."""
        if self._send(peer, message):
            self.rejected["undelivered"] += 1

    def _send(self, peer: bytes, message: Message) -> int:
        """Send without waiting; returns 0, or why not: EHOSTUNREACH without a connection, EAGAIN if it is full."""
        # One after the other gets the same: the members of a world of thousands, whose names are in it.
        if self._encoded[0] is not message:
            self._encoded = message, encode(message)
        try:
            self._socket.send_multipart([peer, self._encoded[1]], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return error.errno
        return 0

    def close(self) -> None:
        """Close the socket; messages that were sent go out first, within two seconds."""
        self._gate.close()
        self._context.term()
