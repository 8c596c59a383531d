"""Messages as bytes: msgpack of tagged structs, and nothing else is decoded.

A vote goes over the wire in the form that it had when the vote and its report were one message, so that workers and
coordinators of older and newer versions of one protocol number understand each other.
"""

from __future__ import annotations

from typing import Any, Union, get_args

import msgspec

from liver_slurm.protocol.messages import Handover, Message, Reply, Streamed, ToCoordinator, ToWorker, TransferReport


class _FlatStreamed(TransferReport, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="Streamed"):
    """:class:`Streamed` on the wire: its report's fields stand beside its own."""

    worker: str
    generation: int
    ok: bool
    error: str = ""
    found: Handover = Handover()

    @classmethod
    def of(cls, vote: Streamed) -> _FlatStreamed:
        report = msgspec.structs.asdict(vote.report)
        return cls(
            worker=vote.worker, generation=vote.generation, ok=vote.ok, error=vote.error, found=vote.found, **report
        )

    def vote(self) -> Streamed:
        report = TransferReport(**{name: getattr(self, name) for name in TransferReport.__struct_fields__})
        return Streamed(
            worker=self.worker,
            generation=self.generation,
            ok=self.ok,
            error=self.error,
            report=report,
            found=self.found,
        )


_encoder = msgspec.msgpack.Encoder()
_WIRE: Any = Union[tuple(_FlatStreamed if kind is Streamed else kind for kind in get_args(ToCoordinator))]  # noqa: UP007
_to_coordinator: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(_WIRE)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_client: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Message) -> bytes:
    """Encode one message as msgpack."""
    return _encoder.encode(_FlatStreamed.of(message) if isinstance(message, Streamed) else message)


def decode_to_coordinator(data: bytes) -> ToCoordinator:
    """Decode what a worker or client sent.

    Raises:
        msgspec.DecodeError: not one of our messages, or a field of a wrong type.
    """
    message: ToCoordinator | _FlatStreamed = _to_coordinator.decode(data)
    return message.vote() if isinstance(message, _FlatStreamed) else message


def decode_to_worker(data: bytes) -> ToWorker:
    """Decode what the coordinator sent to a worker; raises like :func:`decode_to_coordinator`."""
    return _to_worker.decode(data)


def decode_to_client(data: bytes) -> Reply:
    """Decode what the coordinator sent to a client; raises like :func:`decode_to_coordinator`."""
    return _to_client.decode(data)
