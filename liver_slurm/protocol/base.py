"""What all messages of the control channel have in common, and the report that a vote carries."""

from __future__ import annotations

import msgspec

PROTOCOL = 3
"""Raised when a message changes its meaning; a peer of another number is refused."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages; the tag is the class's name.

    A peer of a later version of one protocol number may send fields that this one does not know: they are not read. A
    message that gets a new field leaves it out on the wire while it has its default (``omit_defaults``), because
    earlier versions refused unknown fields.
    """


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker would go on: what is no box, and must be the same for all who vote for a commit."""

    updates: int = -1
    """That the optimizer has made, as the source world and the target world's counters say; -1: not known here."""
    step: int = -1
    """Steps completed, so that the next one's samples come next; -1: not said."""
    data: str = ""
    """Digest of the run's first sample; empty: not said, or samples are read by a loop of the user's own."""


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker's part of a transfer took: for people and policies, nothing is decided from it."""

    seconds: float = 0.0
    plan_seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_local: int = 0
    staging_peak_bytes: int = 0
    memory_peak_bytes: int = 0
    """Of the process: resident in its life, or allocated on its GPU since this reconfiguration began."""
    state_peak_bytes: int = 0
    """Of the state of both worlds, staging and staged gradients, which is what ``stream.memory_limit`` counts."""
    late_layers: int = 0
    """Layers that had no room before the pause and moved one after the other."""
    image_bytes: int = 0
    """Of host memory in which state waited for the old world to go; mode flat."""
    digests_checked: int = 0
    paused_at: float = 0.0
    """End of the last optimizer step in the old world, seconds since the epoch; 0.0: was in no old world."""
    gap_seconds: float = 0.0
    """The gap that two steps have anyway: median time between an optimizer step's end and the next forward's start."""
    bytes_early: int = 0
    """Of ``bytes_sent``: state that left while training ran; mode overlap."""
    bytes_gradients: int = 0
    """Of ``bytes_sent``: gradients that followed it."""
    gradient_staging_bytes: int = 0
    hook_seconds: float = 0.0
    """How long training waited in the optimizer's hooks for gradients to leave."""
