"""How the workers of a transfer meet, and how each hears at once that another is gone.

Each end dials the other when it first needs it, and what it sends goes over the connection that it dialled. An end that
only receives has dialled too, so that the kernel tells it of a peer that died before it sent anything: everybody who
waits for a peer holds a connection to it. Peers of one machine meet on abstract AF_UNIX sockets, others over TCP; only
who dials decides, so nothing has to be agreed upon. Nothing lies in a file system, so nothing is left there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import socket
import threading
from functools import partial
from typing import Any

import msgspec

from liver_slurm.base.errors import TransferError
from liver_slurm.base.network import reachable_host
from liver_slurm.parallel import listeners
from liver_slurm.transfer.greeting import introduce
from liver_slurm.transfer.reception import Reception, Watch

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
    """Return the same for two processes exactly if they reach each other's abstract sockets, and so can share memory.

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

    def __init__(self, store: Any, me: int, peers: int, local: bool, interface: str | None) -> None:
        """
        Args:
            store: a torch store of the peers' own scope; it is asked when a peer is first dialled.
            me, peers: this process's number, and how many there are.
            local: peers of this machine do without TCP.
            interface: network interface to listen on; default: all of them, found by the host's name.

        Raises:
            BadInput: there is no such interface.
        """
        host = reachable_host(interface)
        self._store, self._me, self._locally = store, me, local
        self._changed = threading.Condition()
        self._dialling = [threading.Lock() for _ in range(peers)]
        self._dialled: dict[int, socket.socket] = {}
        self._arrived: dict[int, socket.socket] = {}
        self._introducing: set[socket.socket] = set()
        self._gone: dict[int, str] = {}
        self._over = ""  # why nobody is to wait any more; empty: it is not over
        self._ended = False
        self._watch = Watch()
        self._suspects: dict[int, str] = {}
        self._wake = os.eventfd(0)
        self._watch.add(self._wake, select.EPOLLIN, lambda: os.eventfd_read(self._wake))
        tcp = listeners.create_server((host if interface else "", 0), _BACKLOG)
        unix = socket.socket(socket.AF_UNIX)
        unix.bind("\0liver-slurm-" + secrets.token_hex(16))
        unix.listen(_BACKLOG)
        token = secrets.token_bytes(32)
        self._own = Record(host, tcp.getsockname()[1], unix.getsockname()[1:].decode(), machine(), token)
        self._reception = Reception([tcp, unix], token, peers, self._watch, self._take)
        self._watcher = threading.Thread(target=self._run, name="connections", daemon=True)
        self._watcher.start()
        try:
            store.set(str(me), msgspec.msgpack.encode(self._own))
        except BaseException:  # the store is closed where what this is for is given up
            self.close()
            raise

    def outgoing(self, peer: int) -> socket.socket:
        """Return the connection that what is sent to ``peer`` goes over; dials it if that has not happened.

        Raises:
            TransferError: the peer is gone, or everything was given up.
        """
        with self._dialling[peer]:
            if not self._over and peer not in self._dialled:
                self._open(peer)
            if self._over:
                raise TransferError(self._over)
            return self._dialled[peer]

    def incoming(self, peer: int) -> socket.socket:
        """Return the connection that what ``peer`` sends comes over; waits until it has dialled.

        Raises:
            TransferError: the peer is gone, or everything was given up.
        """
        if peer not in self._arrived:
            try:
                self.outgoing(peer)  # it hangs up if the peer dies before it dials
            except TransferError as error:
                with self._changed:
                    self._suspect(peer, str(error))
        with self._changed:
            self._changed.wait_for(lambda: peer in self._arrived or peer in self._gone or bool(self._over))
            if self._over:
                raise TransferError(self._over)
            if peer not in self._arrived:
                raise TransferError(self._gone[peer])
            return self._arrived[peer]

    def give_up(self) -> None:
        """Hang up on everybody: whoever waits, here or there, is thrown out."""
        self._end("the transfer was given up")
        with self._changed:
            ended, self._ended = self._ended, True
        if not ended:
            self._watcher.join()
            os.close(self._wake)

    def _end(self, why: str) -> None:
        with self._changed:
            if self._over:
                return
            self._over = why
            for connection in (*self._dialled.values(), *self._arrived.values(), *self._introducing):
                hang_up(connection)
            self._changed.notify_all()
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Give everything back; no thread may still use a connection."""
        self.give_up()
        for connection in (*self._dialled.values(), *self._arrived.values()):
            connection.close()
        self._dialled, self._arrived = {}, {}

    def _open(self, peer: int) -> None:
        connection = self._dial(peer)
        with self._changed:
            if self._over:
                connection.close()
                return
            self._dialled[peer] = connection
            self._watch.add(connection.fileno(), select.EPOLLRDHUP, partial(self._hung_up, peer))

    def _dial(self, peer: int) -> socket.socket:
        try:
            record = msgspec.msgpack.decode(self._store.get(str(peer)), type=Record)
        except RuntimeError as error:  # torch's store errors
            raise TransferError(f"the address of peer {peer} cannot be had from the run's store: {error}") from error
        try:
            if self._locally and record.machine == self._own.machine:
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(f"\0{record.local}")
            else:
                connection = socket.create_connection((record.host, record.port), _USER_TIMEOUT_MS / 1000)
                _harden(connection)
            self._introduce(connection, record.token)
        except OSError as error:
            raise TransferError(f"peer {peer} on {record.host} cannot be reached: {error}") from error
        return connection

    def _introduce(self, connection: socket.socket, token: bytes) -> None:
        with self._changed:
            self._introducing.add(connection)
            if self._over:
                hang_up(connection)
        try:
            introduce(connection, token, self._me, receive_exactly)
        except OSError:
            connection.close()
            raise
        finally:
            with self._changed:
                self._introducing.discard(connection)

    def _hung_up(self, peer: int) -> None:
        # Who sends on it may wait for room in a peer that takes nothing any more: TCP alone would not wake it.
        hang_up(self._dialled[peer])
        self._suspect(peer, f"peer {peer} went away before it sent anything")

    def _suspect(self, peer: int, why: str) -> None:
        if not self._over:
            self._suspects[peer] = why
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        """Run the watcher's thread: take calls, and notice who hangs up."""
        try:
            self._watch_all()
        except Exception as error:  # noqa: BLE001 - a thread's edge
            # Nobody would be heard of any more: whoever waits must not do so for ever.
            _log.exception("the connections of a transfer are not watched any more")
            self._end(f"connections are not watched any more: {error}")
        self._watch.close()
        # A peer may have dialled just now, and waits for nobody but us to hang up.
        self._reception.close()

    def _watch_all(self) -> None:
        while True:
            # Whoever hung up may have dialled before: calls that wait are taken first, then it is declared gone.
            events = self._watch.wait(0 if self._suspects else self._reception.until_next())
            with self._changed:
                if self._over:
                    return
                for file, event in events:
                    ready = self._watch.ready.get(file)
                    if event & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                        self._watch.remove(file)
                    if ready is not None:  # else it is a caller that was hung up on a moment ago
                        ready()
                self._reception.look()
                if not events:
                    self._gone.update(self._suspects)
                    self._suspects.clear()
                    self._changed.notify_all()

    def _take(self, peer: int, connection: socket.socket) -> bool:
        """Take a peer's connection; False: there is one."""
        if peer in self._arrived:
            return False
        if connection.family == socket.AF_INET:
            _harden(connection)
        self._arrived[peer] = connection
        self._changed.notify_all()
        return True


def hang_up(connection: socket.socket) -> None:
    """End both directions, which throws out whoever waits at either end; the descriptor stays valid."""
    with contextlib.suppress(OSError):  # the other end was faster
        connection.shutdown(socket.SHUT_RDWR)


def hung_up(connection: socket.socket) -> bool:
    """Return whether the other end has hung up, of a connection on which nothing more is due from it."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _harden(connection: socket.socket) -> None:
    """Notice a host that vanished; send headers at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
