"""Worker end of the control channel: keeps the worker registered with the run's present coordinator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

import msgspec
import zmq

from liver_slurm.base.errors import ControlError
from liver_slurm.protocol.messages import FromWorker, Heartbeat, Notice, Register, ToWorker
from liver_slurm.protocol.session import Session
from liver_slurm.protocol.wire import decode_to_worker, encode
from liver_slurm.rundir import address, keys
from liver_slurm.rundir.paths import RunDir

_RETRY = 1.0
"""Seconds between registrations that are not answered; the coordinator's address is read four times as often."""
_SILENCE = 1.5
"""Seconds without a message from the coordinator after which its address is read again. It answers heartbeats, so with
the default of one a second a healthy run never reads it; less would make every worker read a file a second in vain."""


class WorkerChannel:
    """DEALER socket of one worker; create and use it in one thread.

    The channel registers by itself, at the start and whenever it meets a coordinator of another epoch; it calls
    ``register`` for the message, which carries the worker's present world and step. What is said when, and what is said
    again, is :class:`~liver_slurm.protocol.session.Session`'s.

    ``rejected`` counts messages that were dropped: malformed, or of another epoch than the coordinator's.
    """

    def __init__(self, run_dir: RunDir, register: Callable[[], Register]) -> None:
        """Load the run's keys; the connection is made in :meth:`poll`.

        Raises:
            ControlError: the run's keys are missing or open to others.
        """
        self._run_dir, self._register = run_dir, register
        pairs = keys.load(run_dir.secrets)
        self._client, self._server_public = pairs.client, pairs.server.public
        self._identity = f"{os.getpid()}-{uuid4().hex}".encode()
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._address: address.Address | None = None
        self._session = Session()
        self._next_look = self._next_register = 0.0
        self._last_contact = time.monotonic()
        self.rejected = 0

    @property
    def epoch(self) -> int:
        """Epoch of the coordinator that has welcomed this worker; -1: none yet."""
        return self._session.epoch

    @property
    def every(self) -> float:
        """Seconds between heartbeats that the coordinator wants; 0.0: those of the job file."""
        return self._session.every

    @property
    def voted(self) -> int:
        """Generation of the target world that the worker has voted on last; -1: it never has."""
        return self._session.voted

    def answer_to(self, order: ToWorker) -> FromWorker | None:
        """Return the answer that ``order`` has had already; None: it is new, or still being carried out."""
        return self._session.answer_to(order)

    @property
    def seconds_since_contact(self) -> float:
        """Seconds since the last message from a coordinator, or since the channel's start if there was none."""
        return time.monotonic() - self._last_contact

    def excuse_silence(self) -> None:
        """Restart the count of the coordinator's silence, because this process itself was stopped."""
        self._last_contact = time.monotonic()

    def send(self, message: FromWorker) -> None:
        """Send without waiting; messages are kept until a coordinator has welcomed this worker."""
        for one in self._session.say(message):
            self._put(one)

    def poll(self, timeout: float, wake: Sequence[int] = ()) -> list[ToWorker]:
        """Receive the coordinator's messages; waits up to ``timeout`` seconds for the first.

        Returns early, perhaps with nothing, when one of the file descriptors ``wake`` becomes readable. The
        channel handles Welcome and Alive itself; all others are returned.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._follow()
            messages = self._receive()
            remaining = deadline - time.monotonic()
            if messages or remaining <= 0 or self._wait(min(remaining, self._patience()), wake):
                return messages

    def close(self, linger: float = 2.0) -> None:
        """Close the socket; messages that were sent go out first, within ``linger`` seconds."""
        if self._socket is not None:
            self._socket.close(linger=int(linger * 1000))
            self._socket = None
        self._context.term()

    def _wait(self, seconds: float, wake: Sequence[int]) -> bool:
        """Wait for the socket or ``wake``; returns whether one of ``wake`` is readable."""
        poller = zmq.Poller()
        for descriptor in wake:
            poller.register(descriptor, zmq.POLLIN)
        if self._socket is not None:
            poller.register(self._socket, zmq.POLLIN)
        ready = dict(poller.poll(max(1, int(seconds * 1000))))
        return any(descriptor in ready for descriptor in wake)

    @property
    def _silence(self) -> float:
        return _SILENCE * max(1.0, self.every)

    def _patience(self) -> float:
        """Return the seconds until :meth:`_follow` can have work.

        Each needless wake-up takes CPU time from training.
        """
        return max(_RETRY / 4, self._silence - self.seconds_since_contact) if self.epoch >= 0 else _RETRY / 4

    def _follow(self) -> None:
        """Connect to the coordinator's present address, and register until it answers."""
        now = time.monotonic()
        if now >= self._next_look and (self.epoch < 0 or self.seconds_since_contact > self._silence):
            self._next_look = now + _RETRY / 4
            self._reconnect()
        if self._socket is not None and self.epoch < 0 and now >= self._next_register:
            self._next_register = now + _RETRY
            self._put(self._register())

    def _reconnect(self) -> None:
        try:
            found = address.read(self._run_dir.address_file)
        except ControlError:
            return  # not there yet, or not yet visible over a slow file system: it is read again soon
        if found == self._address:
            return
        if self._socket is not None:
            self._socket.close(linger=0)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.routing_id = self._identity
        self._socket.curve_publickey, self._socket.curve_secretkey = self._client.public, self._client.secret
        self._socket.curve_serverkey = self._server_public
        self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = 100, 2000
        # A node that lost power closes no connection: only a ping that stays unanswered shows it.
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 5000, 15000
        # Attempts in a hole of the network are given up early, as the kernel waits ever longer between its own: whoever
        # is not heard of within job.lost_after is lost.
        self._socket.connect_timeout = 2000
        self._socket.linger = 0
        self._socket.connect(found.endpoint)
        self._address, self._session.epoch, self._next_register = found, -1, 0.0

    def _receive(self) -> list[ToWorker]:
        messages: list[ToWorker] = []
        while self._socket is not None and self._socket.poll(0):
            try:
                message = decode_to_worker(b"".join(self._socket.recv_multipart()))
            except msgspec.DecodeError:
                self.rejected += 1
                continue
            self._last_contact = time.monotonic()
            registered = self._session.epoch >= 0
            for_worker, replies = self._session.hear(message)
            if registered and self._session.epoch < 0:
                self._next_register = 0.0
            for reply in replies:
                self._put(reply)
            if for_worker:
                messages.append(message)
        self.rejected += self._session.rejected
        self._session.rejected = 0
        return messages

    def _put(self, message: FromWorker) -> None:
        assert self._socket is not None
        if isinstance(message, Notice):
            message = msgspec.structs.replace(message, sent=time.time())
        elif isinstance(message, Heartbeat) and message.notice is not None:
            notice = msgspec.structs.replace(message.notice, sent=time.time())
            message = msgspec.structs.replace(message, notice=notice)
        try:
            self._socket.send(encode(message), flags=zmq.NOBLOCK)
        except zmq.Again:
            self.rejected += 1  # the coordinator has been away for a thousand messages; it will get the newer ones
