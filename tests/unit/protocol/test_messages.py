"""Messages on the wire: what other versions send and understand stays."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from liver_slurm.protocol.messages import (
    FromWorker,
    Handover,
    Streamed,
    TransferReport,
    WorldEntered,
)
from liver_slurm.protocol.wire import decode_to_coordinator, encode

FLAT: dict[str, Any] = {
    "type": "Streamed", "worker": "live-1", "generation": 3, "ok": True, "error": "", "seconds": 0.5,
    "plan_seconds": 0.25, "bytes_sent": 1, "bytes_received": 2, "bytes_local": 3, "staging_peak_bytes": 4,
    "memory_peak_bytes": 5, "state_peak_bytes": 6, "late_layers": 7, "image_bytes": 14, "digests_checked": 8,
    "paused_at": 9.0, "gap_seconds": 0.125, "bytes_early": 10, "bytes_gradients": 11, "gradient_staging_bytes": 12,
    "hook_seconds": 13.0, "found": {"updates": 39, "step": 40, "data": "5eed"},
}  # fmt: skip
"""A vote as workers sent it when it and its report were one message."""
VOTE = Streamed(
    worker="live-1",
    generation=3,
    ok=True,
    found=Handover(**FLAT["found"]),
    report=TransferReport(**{key: FLAT[key] for key in TransferReport.__struct_fields__}),
)


def test_a_vote_is_sent_as_ever() -> None:
    assert msgspec.msgpack.decode(encode(VOTE)) == FLAT
    assert decode_to_coordinator(encode(VOTE)) == VOTE
    assert decode_to_coordinator(msgspec.msgpack.encode(FLAT)) == VOTE
    no = {"type": "Streamed", "worker": "live-1", "generation": 3, "ok": False, "error": "digest of x differs"}
    assert decode_to_coordinator(msgspec.msgpack.encode(no)) == Streamed(
        worker="live-1", generation=3, ok=False, error="digest of x differs"
    )


@pytest.mark.parametrize("change", [{"ok": 1}, {"joules": 3}, {"bytes_sent": "many"}])
def test_a_malformed_vote(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_to_coordinator(msgspec.msgpack.encode(FLAT | change))


def test_other_messages_are_sent_as_they_are() -> None:
    message: FromWorker = WorldEntered(worker="live-1", generation=3, step=4, time=5.0)
    assert decode_to_coordinator(encode(message)) == message
