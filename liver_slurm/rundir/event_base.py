"""What all events of ``events.jsonl`` have in common. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

Document = dict[str, Any]
"""One line of the file: at least ``{"time": seconds since the epoch, "event": name}``."""


def snake(name: str) -> str:
    """Return the name of an event whose class has this name."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def plain(struct: msgspec.Struct) -> Document:
    """Return the keys and values as JSON has them, and as they are when read back: lists, no tuples."""
    found: Document = msgspec.to_builtins(struct)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


class EventBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=snake):
    """Base of all events but one, which has the same two fields."""

    time: float = 0.0
    """When it was written, seconds since the epoch; 0.0: it has not been yet."""
    generation: int = -1
    """Of the world that it is about, the live one unless another is meant; -1: there is none."""
