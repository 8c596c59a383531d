"""The gate of a listening socket: only holders of the run's client key come in, all others are counted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import zmq
import zmq.auth.thread

from liver_slurm.rundir.keys import Keys

HANDSHAKE_MS = 10_000
"""Milliseconds within which a caller must have shown that it has the run's key; then it is hung up on."""
HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

_EVENT = struct.Struct("=hi")
"""First frame of an event, as zmq_socket_monitor(3) has it: what happened, and a value such as a descriptor."""


class Gate:
    """CURVE with one key that is let in; to be made before the socket is bound."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        keys: Keys,
        closed: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            closed: called, by :meth:`look`, with the descriptor of each connection that was closed.
        """
        # ZAP: any key but the client's is refused during the handshake, before a message can arrive.
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", credentials_provider=_OnlyKey(keys.client.public))
        self._socket = socket
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = keys.server.public, keys.server.secret
        socket.handshake_ivl = HANDSHAKE_MS
        watched = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._closed = closed
        self._monitor = socket.get_monitor_socket(watched if closed is None else watched | zmq.EVENT_DISCONNECTED)
        self._calls: list[int] = [0, 0]

    @property
    def strangers(self) -> int:
        """Callers that have not shown the key; one of ours is among them while it is about to."""
        return max(0, self._calls[0] - self._calls[1])

    def look(self) -> None:
        """Count who has come, and tell who has gone; called by the thread that uses the socket."""
        for event, descriptor in self._events():
            if event != zmq.EVENT_DISCONNECTED:
                self._calls[event == zmq.EVENT_HANDSHAKE_SUCCEEDED] += 1
            elif self._closed is not None:
                self._closed(descriptor)

    def _events(self) -> Iterator[tuple[int, int]]:
        """Take the events that are there, and their values; pyzmq's own way takes longer, and strangers make many."""
        while True:
            try:
                head, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield _EVENT.unpack(head)

    def close(self) -> None:
        """Close the socket too; messages that were sent go out first, as its ``linger`` says."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._authenticator.stop()


class _OnlyKey:
    """Credentials provider for pyzmq that accepts one key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the holder of ``key`` (Z85) may connect."""
        return key == self._public
