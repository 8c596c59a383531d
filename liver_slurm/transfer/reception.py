"""Who is let into a transfer: callers are taken, must prove within seconds who they are, and are few at a time."""

from __future__ import annotations

import errno
import itertools
import logging
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from liver_slurm.transfer.greeting import (
    CALLER_SECONDS,
    INTRODUCTION,
    MOST_CALLERS,
    answer_to,
    challenge,
    same_user,
)

_BREATH = 0.2
"""Seconds without new calls when this process has no file descriptor left for them."""
_LOG_EVERY = 60.0
"""Seconds between two lines about strangers."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

strangers: Counter[str] = Counter()
"""Callers that this process has refused, by reason: ``refused``, ``silent``, ``crowd``."""

_log = logging.getLogger(__name__)


class Watch:
    """File descriptors that are watched, and what is called when one is ready."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.ready: dict[int, Callable[[], object]] = {}

    def add(self, file: int, events: int, ready: Callable[[], object]) -> None:
        """Watch a file; any thread may call."""
        self.ready[file] = ready
        self._epoll.register(file, events)

    def remove(self, file: int) -> None:
        """Watch it no more, if it is watched."""
        if self.ready.pop(file, None) is not None:
            self._epoll.unregister(file)

    def change(self, file: int, events: int) -> None:
        """Watch it for something else."""
        self._epoll.modify(file, events)

    def wait(self, seconds: float | None) -> list[tuple[int, int]]:
        """Return the files that are ready, with the events."""
        return self._epoll.poll(seconds)

    def close(self) -> None:
        """Give it back."""
        self._epoll.close()


@dataclass(eq=False)
class _Caller:
    """Somebody who has dialled, and has not said yet who it is."""

    challenge: bytes
    until: float
    """When its time is up."""
    heard: bytearray = field(default_factory=bytearray)


class Reception:
    """Takes calls on listening sockets; called by the thread that watches, and by no other."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        token: bytes,
        peers: int,
        watch: Watch,
        arrived: Callable[[int, socket.socket], bool],
    ) -> None:
        """
        Args:
            arrived: told of a peer that has proven to be one, before it is answered; False: it is here already.
        """
        self._listeners, self._token, self._peers = listeners, token, peers
        self._watch, self._arrived = watch, arrived
        self.callers: dict[socket.socket, _Caller] = {}
        """Oldest first."""
        self._breathing = 0.0  # until when no calls are taken; 0.0: they are
        self._next_line = 0.0
        for listener in listeners:
            listener.setblocking(False)
            watch.add(listener.fileno(), select.EPOLLIN, partial(self._accept, listener))

    def until_next(self) -> float | None:
        """Return the seconds until something is due by itself: a caller's time is up, or calls are taken again; None:
        nothing."""
        due = [caller.until for caller in itertools.islice(self.callers.values(), 1)]
        due += [self._breathing] if self._breathing else []
        return max(0.0, min(due) - time.monotonic()) if due else None

    def look(self) -> None:
        """Hang up on callers whose time is up, and take calls again if that was put off."""
        now = time.monotonic()
        for connection in [one for one, caller in self.callers.items() if caller.until <= now]:
            self._drop(connection, "silent")
        if self._breathing and now >= self._breathing:
            self._breathing = 0.0
            for listener in self._listeners:
                self._watch.change(listener.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Take no more calls; whoever has not introduced itself is hung up on."""
        for each in (*self._listeners, *self.callers):
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._breathe()
            return  # any other: the caller has hung up already
        if len(self.callers) >= self._peers + MOST_CALLERS:
            self._drop(next(iter(self.callers)), "crowd")
        connection.setblocking(False)
        caller = self.callers[connection] = _Caller(challenge(), time.monotonic() + CALLER_SECONDS)
        self._watch.add(connection.fileno(), select.EPOLLIN, partial(self._greet, connection, caller))
        try:
            if listener.family == socket.AF_UNIX and not same_user(connection):
                self._drop(connection, "refused")
            else:
                connection.send(caller.challenge)
        except OSError:
            self._drop(connection, "refused")

    def _breathe(self) -> None:
        """Take no calls for a moment, and give back what is held for callers: this process needs its descriptors."""
        for connection in list(self.callers):
            self._drop(connection, "crowd")
        if not self._breathing:
            for listener in self._listeners:
                self._watch.change(listener.fileno(), 0)
        self._breathing = time.monotonic() + _BREATH

    def _drop(self, connection: socket.socket, why: str) -> None:
        del self.callers[connection]
        self._watch.remove(connection.fileno())
        strangers[why] += 1
        connection.close()
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + _LOG_EVERY
            _log.warning("callers who do not belong to this transfer were refused, so far: %s", dict(strangers))

    def _greet(self, connection: socket.socket, caller: _Caller) -> None:
        """Take what a caller says; it is a peer's connection once it has proven to be one."""
        if connection not in self.callers:
            return
        try:
            part = connection.recv(INTRODUCTION - len(caller.heard))
        except OSError:
            part = b""
        caller.heard += part
        if part and len(caller.heard) < INTRODUCTION and connection.fileno() in self._watch.ready:
            return
        answer = None
        if len(caller.heard) == INTRODUCTION:
            answer = answer_to(self._token, caller.challenge, bytes(caller.heard))
        if answer is None or answer[0] >= self._peers:
            self._drop(connection, "refused")
            return
        peer, proof = answer
        self._watch.remove(connection.fileno())
        connection.setblocking(True)
        try:
            connection.send(proof)
        except OSError as error:
            _log.info("peer %d hung up while it was answered: %s", peer, error)
        if self._arrived(peer, connection):
            del self.callers[connection]
        else:
            self._drop(connection, "refused")
