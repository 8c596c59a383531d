"""How the peers of a host transport meet, and how each hears at once that another is gone.

Each end dials the other when it first needs it, and what it sends goes over the connection that it dialled. An end that
only receives has dialled too, so that the kernel tells it of a peer that died before it sent anything: everybody who
waits for a peer holds a connection to it. Peers of one machine meet on abstract AF_UNIX sockets, others over TCP; only
who dials decides, so nothing has to be agreed upon. Nothing lies in a file system, so nothing is left there.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec

from liver_slurm.base.errors import BadInput, TransferError
from liver_slurm.base.network import reachable_host

Reach = Literal["auto", "tcp", "shm"]
"""``auto``: shared memory where the peer is on this machine, else TCP."""

_GREETING = struct.Struct("<32sI")
"""The token of whom one dials, and one's own number."""
_BACKLOG = 1024
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 5))
_USER_TIMEOUT_MS = 8000
"""With the keep-alive: a host that vanishes without a word is given up after eight seconds."""

_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True):
    """What a peer tells the others of itself, through the store."""

    host: str
    port: int
    local: str
    """Abstract AF_UNIX name."""
    machine: str
    token: bytes


def machine() -> str:
    """The same for two processes exactly if they reach each other's abstract sockets, and so can share memory.

    Not the host name: that lies where several slurmd or containers run on one machine.
    """
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"


def receive_exactly(connection: socket.socket, view: memoryview) -> None:
    """Fill ``view``.

    Raises:
        OSError: the other end is gone.
    """
    while len(view):
        # MSG_WAITALL: one call for all of it, so that a busy training thread is asked for the interpreter only once
        got = connection.recv_into(view, 0, socket.MSG_WAITALL)
        if not got:
            raise ConnectionResetError("it hung up")
        view = view[got:]


class Connections:
    """This process's connections to numbered peers. Any thread may call."""

    def __init__(self, store: Any, me: int, peers: int, reach: Reach, interface: str | None) -> None:
        """
        Args:
            store: a torch store of the peers' own scope; it is asked when a peer is first dialled.
            me, peers: this process's number, and how many there are.
            reach: which peers may share memory.
            interface: network interface to listen on; default: all of them, found by the host's name.

        Raises:
            BadInput: there is no such interface.
        """
        host = reachable_host(interface)
        self._store, self._me, self._peers, self._reach = store, me, peers, reach
        self._changed = threading.Condition()
        self._dialling = [threading.Lock() for _ in range(peers)]
        self._dialled: dict[int, socket.socket] = {}
        self._arrived: dict[int, socket.socket] = {}
        self._callers: set[socket.socket] = set()  # who has not said yet who it is; only the watcher's
        self._gone: dict[int, str] = {}
        self._given_up = False
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], object]] = {}
        self._suspects: dict[int, str] = {}
        self._wake = os.eventfd(0)
        self._watch(self._wake, select.EPOLLIN, lambda: os.eventfd_read(self._wake))
        tcp = socket.create_server((host if interface else "", 0), backlog=_BACKLOG)
        local = socket.socket(socket.AF_UNIX)
        local.bind("\0liver-slurm-" + secrets.token_hex(16))
        local.listen(_BACKLOG)
        self._listeners = [tcp, local]
        for listener in self._listeners:
            listener.setblocking(False)
            self._watch(listener.fileno(), select.EPOLLIN, partial(self._accept, listener))
        self._own = Record(
            host, tcp.getsockname()[1], local.getsockname()[1:].decode(), machine(), secrets.token_bytes(32)
        )
        self._watcher = threading.Thread(target=self._run, name="connections", daemon=True)
        self._watcher.start()
        store.set(str(me), msgspec.msgpack.encode(self._own))

    def outgoing(self, peer: int) -> socket.socket:
        """The connection that what is sent to ``peer`` goes over; dials it if that has not happened.

        Raises:
            TransferError: the peer is gone, or everything was given up.
            BadInput: only shared memory is allowed, and the peer is on another machine.
        """
        with self._dialling[peer]:
            if peer not in self._dialled:
                connection = self._dial(peer)
                with self._changed:
                    if self._given_up:
                        connection.close()
                        raise TransferError("the transfer was given up")
                    self._dialled[peer] = connection
                    self._watch(connection.fileno(), select.EPOLLRDHUP, partial(self._hung_up, peer))
            return self._dialled[peer]

    def incoming(self, peer: int) -> socket.socket:
        """The connection that what ``peer`` sends comes over; waits until it has dialled.

        Raises:
            TransferError: the peer is gone, or everything was given up.
            BadInput: see :meth:`outgoing`.
        """
        if peer not in self._arrived:
            try:
                self.outgoing(peer)  # it hangs up if the peer dies before it dials
            except TransferError as error:
                with self._changed:
                    self._suspect(peer, str(error))
        with self._changed:
            self._changed.wait_for(lambda: peer in self._arrived or peer in self._gone or self._given_up)
            if self._given_up:
                raise TransferError("the transfer was given up")
            if peer not in self._arrived:
                raise TransferError(self._gone[peer])
            return self._arrived[peer]

    def give_up(self) -> None:
        """Hang up on everybody: whoever waits, here or there, is thrown out."""
        with self._changed:
            if self._given_up:
                return
            self._given_up = True
            for connection in (*self._dialled.values(), *self._arrived.values()):
                hang_up(connection)
            self._changed.notify_all()
            os.eventfd_write(self._wake, 1)
        self._watcher.join()

    def close(self) -> None:
        """Give everything back; no thread may still use a connection."""
        self.give_up()
        for connection in (*self._dialled.values(), *self._arrived.values()):
            connection.close()
        self._dialled, self._arrived = {}, {}

    def _dial(self, peer: int) -> socket.socket:
        try:
            record = msgspec.msgpack.decode(self._store.get(str(peer)), type=Record)
        except RuntimeError as error:  # torch's store errors
            raise TransferError(f"the address of peer {peer} cannot be had from the run's store: {error}") from error
        shared = self._reach != "tcp" and record.machine == self._own.machine
        if self._reach == "shm" and not shared:
            raise BadInput(
                f"stream.transport is 'shm', but peer {peer} is on another machine, {record.host}; set it to 'auto'"
            )
        try:
            if shared:
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(f"\0{record.local}")
            else:
                connection = socket.create_connection((record.host, record.port), _USER_TIMEOUT_MS / 1000)
                connection.settimeout(None)
                _harden(connection)
            connection.sendall(_GREETING.pack(record.token, self._me))
        except OSError as error:
            raise TransferError(f"peer {peer} on {record.host} cannot be reached: {error}") from error
        return connection

    def _hung_up(self, peer: int) -> None:
        # Who sends on it may wait for room in a peer that takes nothing any more: TCP alone would not wake it.
        hang_up(self._dialled[peer])
        self._suspect(peer, f"peer {peer} went away before it sent anything")

    def _suspect(self, peer: int, why: str) -> None:
        if not self._given_up:
            self._suspects[peer] = why
            os.eventfd_write(self._wake, 1)

    def _watch(self, file: int, events: int, ready: Callable[[], object]) -> None:
        self._ready[file] = ready
        self._epoll.register(file, events)

    def _unwatch(self, file: int) -> None:
        self._epoll.unregister(file)
        del self._ready[file]

    def _run(self) -> None:
        """The watcher's thread: takes calls, and notices who hangs up."""
        while True:
            # Whoever hung up may have dialled before: calls that wait are taken first, then it is declared gone.
            events = self._epoll.poll(0 if self._suspects else None)
            with self._changed:
                if self._given_up:
                    break
                for file, event in events:
                    ready = self._ready[file]
                    if event & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                        self._unwatch(file)
                    ready()
                if not events:
                    self._gone.update(self._suspects)
                    self._suspects.clear()
                    self._changed.notify_all()
        self._epoll.close()
        # A peer may have dialled just now, and waits for nobody but us to hang up.
        for each in (*self._listeners, *self._callers):
            each.close()
        os.close(self._wake)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._callers.add(connection)
        heard = bytearray()
        self._watch(connection.fileno(), select.EPOLLIN, partial(self._greet, connection, heard))

    def _greet(self, connection: socket.socket, heard: bytearray) -> None:
        """Take what a caller says; it is a peer's connection once it has said the right thing."""
        try:
            part = connection.recv(_GREETING.size - len(heard))
        except OSError:
            part = b""
        heard += part
        watched = connection.fileno() in self._ready
        if part and len(heard) < _GREETING.size and watched:
            return
        if watched:
            self._unwatch(connection.fileno())
        self._callers.remove(connection)
        token, peer = _GREETING.unpack(heard) if len(heard) == _GREETING.size else (b"", self._peers)
        if not hmac.compare_digest(token, self._own.token) or peer >= self._peers or peer in self._arrived:
            _log.warning("a connection from somebody who does not belong to this transfer was refused")
            connection.close()
            return
        connection.setblocking(True)
        if connection.family == socket.AF_INET:
            _harden(connection)
        self._arrived[peer] = connection
        self._changed.notify_all()


def hang_up(connection: socket.socket) -> None:
    """End both directions, which throws out whoever waits at either end; the descriptor stays valid."""
    with contextlib.suppress(OSError):  # the other end was faster
        connection.shutdown(socket.SHUT_RDWR)


def _harden(connection: socket.socket) -> None:
    """Notice a host that vanished; send headers at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
