"""Hang-ups: which peers of the coordinator's socket have closed their connection, as the kernel does for dead ones.

ZeroMQ hides connections from its users. But it says of each message over which descriptor it came, and of each
descriptor when its connection was closed, and that is all that is needed. The connections are those of the control
channel, so only holders of the run's keys can be suspected of anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

RECONNECT = 0.4
"""Seconds that a peer has to come back: one whose process lives tries again after a tenth of a second."""


class HangUps:
    """Follows the connections of one ROUTER socket; used from one thread."""

    def __init__(self) -> None:
        self._peers: dict[int, bytes] = {}
        self._descriptors: dict[bytes, int] = {}
        self._closed: dict[bytes, float] = {}

    def heard(self, peer: bytes, frame: zmq.Frame, look: Callable[[], None]) -> None:
        """Note over which connection a message came.

        Args:
            peer: who sent it.
            frame: a part of it.
            look: calls :meth:`closed` for what the socket's monitor has said.
        """
        descriptor = int(frame.get(zmq.SRCFD))
        if self._peers.get(descriptor) == peer:
            return
        # Who had this descriptor before is gone: that was said before the descriptor was given to another connection.
        look()
        self._peers[descriptor], self._descriptors[peer] = peer, descriptor
        self._closed.pop(peer, None)

    def closed(self, descriptor: int) -> None:
        """Note that a connection was closed."""
        peer = self._peers.pop(descriptor, None)
        if peer is not None and self._descriptors.get(peer) == descriptor:
            del self._descriptors[peer]
            self._closed[peer] = time.monotonic()

    def take(self, is_back: Callable[[bytes], bool]) -> list[tuple[bytes, float]]:
        """Return the peers that have not come back in time, each once, with the seconds since their connection was
        closed.

        Args:
            is_back: whether there is a connection to the peer again, over which it has not said anything yet.
        """
        now = time.monotonic()
        due = {peer: now - since for peer, since in self._closed.items() if now - since >= RECONNECT}
        for peer in due:
            del self._closed[peer]
        return [(peer, ago) for peer, ago in due.items() if not is_back(peer)]
