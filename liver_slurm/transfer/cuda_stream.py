"""Work on a GPU beside training's own stream; on a CPU there is nothing to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class SideStream:
    """One thread's own CUDA stream.

    Only copies and element-wise kernels run in it: nothing that waits for another GPU, so nothing that the live world's
    collectives could wait for in turn.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def use(self, after: Any = None) -> Iterator[None]:
        """Inside the block work goes to this stream, behind ``after`` (an event); it is complete at the block's end."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            yield
        self._stream.synchronize()


def mark(device: torch.device) -> Any:
    """Return an event at the present end of this thread's current stream; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
