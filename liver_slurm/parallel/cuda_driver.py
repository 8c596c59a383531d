"""Functions of CUDA's driver that torch has no public name for; its library needs no version in its name."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

_THREAD_LOCAL = 1


class DriverError(RuntimeError):
    """A function of the driver failed."""


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver, in a thread that has used the card before.

    Raises:
        DriverError: it failed; says the function and the driver's name for the error.
    """
    code = getattr(_driver(), name)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise DriverError(f"{name}: {text.value.decode() if text.value else code}")


@contextmanager
def recorded_only(device: torch.device) -> Iterator[None]:
    """Record the block's kernels, in a stream of its own, and never run them; other threads are not affected.

    Libraries prepare on the host what they launch, and that stays. torch's own way to record a graph would also tell
    its random number generators, which other threads may be using.
    """
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)
    handle = ctypes.c_void_p(stream.cuda_stream)
    with torch.cuda.stream(stream):
        call("cuStreamBeginCapture_v2", handle, ctypes.c_int(_THREAD_LOCAL))
        graph = ctypes.c_void_p()
        try:
            yield
        finally:
            call("cuStreamEndCapture", handle, ctypes.byref(graph))
            if graph:
                call("cuGraphDestroy", graph)
