"""Coordinator end of the control channel: a CURVE server that admits only holders of the run's client key."""

from __future__ import annotations

import os
import time
from collections import Counter

import msgspec
import zmq
import zmq.auth.thread
from zmq.utils.monitor import recv_monitor_message

from liver_slurm.protocol.messages import Message, ToCoordinator
from liver_slurm.protocol.wire import decode_to_coordinator, encode
from liver_slurm.rundir import address, keys
from liver_slurm.rundir.paths import RunDir

LARGEST_MESSAGE = 16 << 20
"""Bytes; a peer that sends more is cut off by ZeroMQ. A world of 10,000 members needs less than 1 MiB."""
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class ControlServer:
    """ROUTER socket for workers and clients; used from one thread.

    ``rejected`` counts what was dropped: ``strangers`` (failed handshakes), ``malformed`` (not one of our messages) and
    ``undelivered`` (messages of ours to peers that were gone).
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
        # ZAP: any key but the client's is refused during the handshake, before a message can arrive.
        self._gate = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._gate.start()
        self._gate.configure_curve_callback("*", credentials_provider=_OnlyKey(pairs.client.public))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey = pairs.server.public
        self._socket.curve_secretkey = pairs.server.secret
        self._socket.linger = 2000
        self._socket.maxmsgsize = LARGEST_MESSAGE
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else messages to a peer that is gone vanish uncounted
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a worker whose connection broke comes back as itself
        self._socket.setsockopt(zmq.SNDHWM, 10_000)
        self._monitor = self._socket.get_monitor_socket(_HANDSHAKE_FAILED)
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
            frames = self._socket.recv_multipart()
            try:
                if len(frames) != 2:
                    raise msgspec.DecodeError(f"{len(frames)} frames")
                received.append((frames[0], decode_to_coordinator(frames[1])))
            except msgspec.DecodeError:
                self.rejected["malformed"] += 1
        self._count_strangers()
        return received

    def send(self, peer: bytes, message: Message) -> None:
        """Send without waiting; a peer that is gone is detected by its silence, not here."""
        try:
            self._socket.send_multipart([peer, encode(message)], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.rejected["undelivered"] += 1

    def close(self) -> None:
        """Close the socket; messages that were sent go out first, within two seconds."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._gate.stop()
        self._context.term()

    def _count_strangers(self) -> None:
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor)
            self.rejected["strangers"] += 1


class _OnlyKey:
    """Credentials provider for pyzmq that accepts one key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the holder of ``key`` (Z85) may connect."""
        return key == self._public
