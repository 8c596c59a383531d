"""The rendezvous store: keys and values through which a target world's members find each other. Pure.

It is what torch calls a store. Torch's own, TCPStore, listens on every interface and asks nobody who he is; this one is
reached over a CURVE connection with the run's keys (:mod:`liver_slurm.protocol.rendezvous_server`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

LARGEST_MESSAGE = 64 << 20
"""Bytes of one request; what a world of 16,384 ranks says of all its shards is a few MB."""
CAPACITY = 1 << 30
"""Bytes of all values. It is the coordinator's memory."""

Operation = Literal["set", "get", "wait", "check", "add", "append", "compare_set", "delete", "count"]


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One operation. ``get`` and ``wait`` are answered when all keys are there, or after ``patience`` seconds."""

    number: int
    """Chosen by the caller; the answer has it too."""
    operation: Operation
    keys: list[str] = []
    values: list[bytes] = []
    amount: int = 0
    """What ``add`` adds."""
    patience: float = 0.0


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Values of ``get``, ``append`` and ``compare_set``, or a number; ``error`` is empty if the operation succeeded."""

    number: int
    values: list[bytes] = []
    amount: int = 0
    error: str = ""


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


@dataclass
class _Waiting:
    peer: bytes
    request: Request
    until: float
    missing: set[str]


@dataclass
class KeyValues:
    """Keys, values, and who waits for them."""

    capacity: int = CAPACITY
    values: dict[str, bytes] = field(default_factory=dict)
    _size: int = 0
    _waiting: dict[str, list[_Waiting]] = field(default_factory=dict)
    """Who waits for a key; in one list for each key that it still misses."""

    def handle(self, peer: bytes, request: Request, now: float) -> Iterator[tuple[bytes, Answer]]:
        """Carry a request out; yields the answers that are due now, to whoever they are for."""
        operation, keys, number = request.operation, request.keys, request.number
        if operation in ("get", "wait"):
            missing = {key for key in keys if key not in self.values}
            waiting = _Waiting(peer, request, now + request.patience, missing)
            if missing:
                for key in missing:
                    self._waiting.setdefault(key, []).append(waiting)
            else:
                yield peer, self._found(request)
        elif operation == "check":
            yield peer, Answer(number, amount=int(all(key in self.values for key in keys)))
        elif operation == "count":
            yield peer, Answer(number, amount=len(self.values))
        elif operation == "delete":
            there = keys[0] in self.values
            if there:
                self._size -= len(self.values.pop(keys[0]))
            yield peer, Answer(number, amount=int(there))
        else:
            yield from self._write(peer, request)

    def _write(self, peer: bytes, request: Request) -> Iterator[tuple[bytes, Answer]]:
        answer, new = self._changed(request)
        growth = sum(len(value) - len(self.values.get(key, b"")) for key, value in new.items())
        if self._size + growth > self.capacity:
            yield peer, Answer(request.number, error=f"the store is full: it holds {self.capacity} bytes at most")
            return
        self._size += growth
        self.values.update(new)
        yield peer, answer
        for key in new:
            for waiting in self._waiting.pop(key, ()):
                waiting.missing.discard(key)
                if not waiting.missing:
                    yield waiting.peer, self._found(waiting.request)

    def _changed(self, request: Request) -> tuple[Answer, dict[str, bytes]]:
        """Return what a writing operation answers, and which keys it gives which values."""
        number, operation, values = request.number, request.operation, request.values
        if operation == "set":
            return Answer(number), dict(zip(request.keys, values, strict=True))
        key = request.keys[0]
        before = self.values.get(key)
        if operation == "add":
            total = int(before or b"0") + request.amount
            return Answer(number, amount=total), {key: str(total).encode()}
        if operation == "append":
            whole = (before or b"") + values[0]
            return Answer(number, amount=len(whole)), {key: whole}
        expected, wanted = values
        # As torch defines it: with nothing expected, a key that is not there is made.
        if before == expected or (before is None and not expected):
            return Answer(number, [wanted]), {key: wanted}
        return Answer(number, [expected if before is None else before]), {}

    def _found(self, request: Request) -> Answer:
        values = [self.values.get(key, b"") for key in request.keys] if request.operation == "get" else []
        return Answer(request.number, values)

    def expire(self, now: float) -> Iterator[tuple[bytes, Answer]]:
        """Yield the answers for whoever has waited long enough."""
        late: dict[int, _Waiting] = {}
        for key, waiters in list(self._waiting.items()):
            kept = [one for one in waiters if one.until > now]
            late |= {id(one): one for one in waiters if one.until <= now}
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key]
        for waiting in late.values():
            missing = min(waiting.missing)
            patience = waiting.request.patience
            yield waiting.peer, Answer(waiting.request.number, error=f"nobody has set {missing!r} in {patience:.0f} s")
