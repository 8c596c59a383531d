"""Work on a GPU beside training's own stream; on a CPU there is nothing to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class SideStream:
    """One thread's own CUDA stream, and a buffer on the device through which scattered boxes leave in one copy.

    Only copies and element-wise kernels run in it: nothing that waits for another GPU, so nothing that the live world's
    collectives could wait for in turn.
    """

    def __init__(self, device: torch.device, scratch_bytes: int) -> None:
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device, self._scratch_bytes = device, scratch_bytes
        self._scratch: torch.Tensor | None = None

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

    def scratch(self, host: torch.Tensor) -> torch.Tensor:
        """Where to lay out what goes to, or comes from, a host buffer: the buffer itself on a CPU."""
        if self._stream is None:
            return host
        if self._scratch is None:
            self._scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=self._device)
        return self._scratch[: host.numel()]

    def to_host(self, scratch: torch.Tensor, host: torch.Tensor) -> None:
        """Copy what was laid out into the host buffer."""
        if scratch is not host:
            host.copy_(scratch, non_blocking=True)

    def to_device(self, host: torch.Tensor, scratch: torch.Tensor) -> None:
        """Copy what arrived in the host buffer to where it is read from."""
        if scratch is not host:
            scratch.copy_(host, non_blocking=True)


def mark(device: torch.device) -> Any:
    """An event at the present end of this thread's current stream; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
