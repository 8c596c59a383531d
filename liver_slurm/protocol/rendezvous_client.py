"""The rendezvous store as torch wants it: a ``torch.distributed.Store`` over a CURVE connection to the coordinator."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import zmq
from zmq.utils.monitor import recv_monitor_message

from liver_slurm.protocol.gate import HANDSHAKE_FAILED
from liver_slurm.protocol.rendezvous import Answer, Operation, Request, decode_answer, encode
from liver_slurm.rundir import keys
from liver_slurm.rundir.paths import RunDir

_GRACE = 10.0
"""Seconds beyond its patience that an answer is waited for."""
_LOOK_MS = 100
"""Between looks at whether the store was closed."""
_HEARTBEAT_MS, _SILENCE_MS = 2000, 10_000
_kept: list[RendezvousStore] = []
"""Stores that groups may still point to: torch would call a method of an object that is gone."""


class StoreError(RuntimeError):
    """The store cannot be reached, was closed, or what was waited for did not come. A RuntimeError, as torch's."""


class RendezvousStore(dist.Store):  # type: ignore[misc]
    """A client of the run's store; any thread may call, each over a connection of its own.

    Torch's groups use it while they are made. Once closed, it holds no connection, and a group that still looks finds
    nothing.
    """

    def __init__(self, run_dir: RunDir, host: str, port: int, patience: timedelta) -> None:
        """
        Args:
            patience: how long a key is waited for.

        Raises:
            ControlError: the run's keys are missing or open to others.
        """
        super().__init__()
        pairs = keys.load(run_dir.secrets)
        self._client, self._server_public = pairs.client, pairs.server.public
        self._endpoint, self._patience = f"tcp://{host}:{port}", patience.total_seconds()
        self._context = zmq.Context()
        self._own = threading.local()
        self._connections: list[_Connection] = []
        self._changed = threading.Condition()
        self._calls, self._closed = 0, False
        self._numbers = itertools.count()
        _kept.append(self)

    def close(self) -> None:
        """Give all connections back; whoever waits is thrown out."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.wait_for(lambda: self._calls == 0)
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()
        self._context.term()

    # ---- what torch calls, from Python and from C++; the names are torch's

    def set(self, key: str, value: str | bytes) -> None:
        """Set a key."""
        self._ask("set", [key], [_bytes(value)])

    def get(self, key: str) -> bytes:
        """Return the value of a key; waits for it."""
        return self.multi_get([key])[0]

    def add(self, key: str, amount: int) -> int:
        """Add to a counter; returns the sum."""
        return self._ask("add", [key], amount=amount).amount

    def append(self, key: str, value: str | bytes) -> None:
        """Append to a value."""
        self._ask("append", [key], [_bytes(value)])

    def compare_set(self, key: str, expected: str | bytes, wanted: str | bytes) -> bytes:
        """Set a key if it has the expected value; returns the value that it has then."""
        return self._ask("compare_set", [key], [_bytes(expected), _bytes(wanted)]).values[0]

    def check(self, names: Sequence[str]) -> bool:
        """Return whether all keys are there."""
        # NCCL's watchdog asks once a second for as long as a group lives.
        return not self._closed and bool(self._ask("check", list(names)).amount)

    def wait(self, names: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait for keys."""
        self._ask("wait", list(names), patience=timeout.total_seconds() if timeout is not None else self._patience)

    def multi_get(self, names: Sequence[str]) -> list[bytes]:
        """Return the values of several keys; waits for them."""
        return self._ask("get", list(names), patience=self._patience).values

    def multi_set(self, names: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Set several keys."""
        self._ask("set", list(names), [_bytes(value) for value in values])

    def delete_key(self, key: str) -> bool:
        """Remove a key; returns whether it was there."""
        return bool(self._ask("delete", [key]).amount)

    deleteKey = delete_key

    def num_keys(self) -> int:
        """Return how many keys there are."""
        return self._ask("count", []).amount

    getNumKeys = num_keys

    def has_extended_api(self) -> bool:
        """Say that several keys can be had at once."""
        return True

    def clone(self) -> RendezvousStore:
        """Return the same store: any thread may use it."""
        return self

    # ---- one request

    def _ask(
        self,
        operation: Operation,
        names: list[str],
        values: Sequence[bytes] = (),
        amount: int = 0,
        patience: float = 0.0,
    ) -> Answer:
        with self._changed:
            self._check_open()
            self._calls += 1
        try:
            request = Request(next(self._numbers), operation, names, list(values), amount, patience)
            answer = self._answer(request, time.monotonic() + patience + _GRACE)
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()
        if answer.error:
            raise StoreError(f"the run's store: {answer.error}")
        return answer

    def _answer(self, request: Request, deadline: float) -> Answer:
        connection = self._connection()
        connection.socket.send(encode(request))
        while time.monotonic() < deadline:
            self._check_open()
            content = connection.receive(_LOOK_MS)
            if content is not None and (answer := decode_answer(content)).number == request.number:
                return answer
        raise StoreError(f"the run's store at {self._endpoint} does not answer")

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the run's store was closed")

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = _Connection(self._dialled(), self._endpoint)
            self._connections.append(connection)
        return connection

    def _dialled(self) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.curve_publickey, dealer.curve_secretkey = self._client.public, self._client.secret
        dealer.curve_serverkey = self._server_public
        dealer.heartbeat_ivl, dealer.heartbeat_timeout = _HEARTBEAT_MS, _SILENCE_MS
        dealer.linger = 0
        return dealer


class _Connection:
    """One thread's connection; a store that is gone is said, and not waited for."""

    def __init__(self, dealer: zmq.Socket[bytes], endpoint: str) -> None:
        self.socket, self._endpoint = dealer, endpoint
        self._monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED)
        self._poller = zmq.Poller()
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        dealer.connect(endpoint)

    def receive(self, milliseconds: int) -> bytes | None:
        """Return a message, or None if none comes in time.

        Raises:
            StoreError: the server is gone.
        """
        ready = dict(self._poller.poll(milliseconds))
        if self.socket in ready:
            return self.socket.recv()
        if self._monitor in ready:
            recv_monitor_message(self._monitor)
            raise StoreError(f"the run's store at {self._endpoint} has hung up")
        return None

    def close(self) -> None:
        self.socket.disable_monitor()
        self._monitor.close(linger=0)
        self.socket.close()


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
