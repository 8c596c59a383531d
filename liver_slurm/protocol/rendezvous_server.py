"""The rendezvous store's server: a thread of the coordinator, reached only with the run's keys."""

from __future__ import annotations

import threading
import time

import msgspec
import zmq

from liver_slurm.protocol.gate import Gate
from liver_slurm.protocol.rendezvous import LARGEST_MESSAGE, KeyValues, Request, decode_request, encode
from liver_slurm.rundir import keys
from liver_slurm.rundir.paths import RunDir

_LOOK = 0.5
"""Seconds between looks for whoever has waited long enough."""


class RendezvousServer:
    """Serves as long as it is not closed.

    It lives in the coordinator, and not with a training rank, because any rank may leave.
    """

    def __init__(self, run_dir: RunDir, bind: str) -> None:
        """Listen on a free port of ``bind``, an address.

        Raises:
            ControlError: the run's keys are missing or open to others.
        """
        pairs = keys.load(run_dir.secrets)
        self._table = KeyValues()
        self.malformed = 0
        """Messages that were none."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._gate = Gate(self._context, self._socket, pairs)
        self._socket.maxmsgsize = LARGEST_MESSAGE
        self._socket.linger = 0
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 10_000)
        self.port = self._socket.bind_to_random_port(f"tcp://{bind}")
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)
        self._thread.start()

    @property
    def strangers(self) -> int:
        """Callers without the run's key."""
        return self._gate.strangers

    def check(self) -> None:
        """Look whether it still serves; without it no world can be made.

        Raises:
            RuntimeError: it does not.
        """
        if self._failure is not None:
            raise RuntimeError("the rendezvous store has broken down") from self._failure

    def close(self) -> None:
        """Stop serving; whoever waits is not answered any more."""
        self._closing.set()
        self._thread.join()
        self._context.term()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - a thread's edge: the coordinator raises it
            self._failure = error
        finally:
            self._gate.close()

    def _serve(self) -> None:
        next_look = 0.0
        while not self._closing.is_set():
            if self._socket.poll(int(_LOOK * 1000)):
                self._answer(self._socket.recv_multipart())
            self._gate.look()
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _LOOK
                for peer, answer in self._table.expire(now):
                    self._socket.send_multipart([peer, encode(answer)])

    def _answer(self, frames: list[bytes]) -> None:
        try:
            peer, content = frames
            request = decode_request(content)
            _check(request)
        except (ValueError, msgspec.DecodeError):
            self.malformed += 1
            return
        for receiver, answer in self._table.handle(peer, request, time.monotonic()):
            self._socket.send_multipart([receiver, encode(answer)])


def _check(request: Request) -> None:
    values = {"set": len(request.keys), "append": 1, "compare_set": 2}.get(request.operation, 0)
    if len(request.values) != values or (not request.keys and request.operation != "count"):
        raise ValueError(f"{request.operation} with {len(request.keys)} keys and {len(request.values)} values")
