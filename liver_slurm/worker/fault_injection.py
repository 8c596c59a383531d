"""Fault injection for tests: ``LIVER_FAULT=ACTION@POINT:WORKER[:SECONDS]`` makes a worker fail at one point.

WORKER is a name, or a pattern such as ``standby-*``. Actions: ``kill`` (SIGKILL to itself), ``fail`` (raise), ``delay``
(sleep for SECONDS), at the point ``received`` ``corrupt`` (flip a bit of each box that arrived, before its digest is
computed), and at the point ``notice`` ``ignore`` (drop signals). Points are named where :func:`reach` is called. The
variable is read once, at import; without it no function here has an effect.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from liver_slurm.base.errors import BadInput, LiverError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Fault:
    action: str
    point: str
    worker: str
    seconds: float


def _parse(text: str) -> _Fault:
    match = re.fullmatch(r"(kill|fail|corrupt|delay|ignore)@(\w+):([^:]+)(?::([0-9]+\.?[0-9]*))?", text)
    if match is None or (match[1] == "delay") != (match[4] is not None):
        raise BadInput(f"LIVER_FAULT={text!r} is not allowed; allowed: ACTION@POINT:WORKER, delay@POINT:WORKER:SECONDS")
    return _Fault(match[1], match[2], match[3], float(match[4] or 0.0))


_fault = _parse(os.environ["LIVER_FAULT"]) if os.environ.get("LIVER_FAULT") else None


def _concerns(point: str, worker: str) -> bool:
    return _fault is not None and _fault.point == point and fnmatch(worker, _fault.worker)


def ignores(point: str, worker: str) -> bool:
    """Whether the worker is to ignore what happens at the point."""
    return _fault is not None and _fault.action == "ignore" and _concerns(point, worker)


def reach(point: str, worker: str) -> None:
    """Mark that the worker has reached the point, and fail there if that is asked for."""
    if _fault is None or not _concerns(point, worker):
        return
    if _fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif _fault.action == "fail":
        raise LiverError(f"LIVER_FAULT: {worker} fails at {point}")
    elif _fault.action == "delay":
        time.sleep(_fault.seconds)


def received(worker: str, box: torch.Tensor) -> None:
    """Mark that a box has arrived in the worker's new state, before its digest is compared.

    Args:
        box: view of the state, shape as in the model.
    """
    reach("received", worker)
    if _fault is not None and _fault.action == "corrupt" and _concerns("received", worker):
        import torch

        first = box[tuple(slice(0, 1) for _ in box.shape)]
        first.copy_((first.contiguous().view(torch.uint8) ^ 1).view(box.dtype))
