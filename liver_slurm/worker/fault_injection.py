"""Fault injection for tests: ``LIVER_FAULT=FAULT@POINT[+N]:WORKER[:SECONDS]`` makes a worker fail at one point.

N is how often the worker has come by before (``step+5``: in its sixth step). WORKER is a name, or a pattern such as
``standby-*``. The faults are those of :mod:`liver_slurm.base.faults`: ``kill``, ``fail`` (raise), ``delay`` (sleep for
SECONDS), ``stop`` and ``disk-full`` (for SECONDS, or for good), ``cut``, at the point ``notice`` ``ignore`` (drop
signals), and at the point ``replayed``, an update of a mirror, ``ignore`` and ``double`` (not made, made twice) and
``corrupt`` (flip a bit of what is kept). Points are named where :func:`reach` is called; each fault is done once,
except ``delay``, and ``corrupt`` and ``ignore`` at points other than ``replayed``.

A :class:`~liver_slurm.base.faults.Defect` is done at a point of its own, each time: ``dropped-name`` and
``wrong-expert`` at ``plan``; ``unloaded``, ``corrupt``, ``permuted``, ``swapped``, ``stale-moment`` and ``cast`` at
``received``, before digests are computed; ``step-reset`` at ``updates``; ``wrong-position`` at ``position``. The
variable is read once, at import; without it no function here has an effect.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.base.faults import INSIDE, Defect, Fault, Victim

if TYPE_CHECKING:
    import torch

    from liver_slurm.engine.replica import Groups, TrainedBox
    from liver_slurm.reshard.plan import RankMoves
    from liver_slurm.transfer.mirror.keeper import Replay
    from liver_slurm.transfer.shared_box import SharedBox

log = logging.getLogger(__name__)

_TIMED = {Fault.DELAY: True, Fault.STOP: False, Fault.DISK_FULL: False}
"""Faults that take SECONDS, and whether they must be said."""
_AGAIN = (Fault.DELAY, Fault.CORRUPT, Fault.IGNORE)
_REPLAYED = "replayed"


@dataclass(frozen=True)
class _Injection:
    fault: Fault | Defect
    point: str
    worker: str
    seconds: float
    after: int = 0


def _parse(text: str) -> _Injection:
    words = "|".join(dict.fromkeys(fault.value for fault in (*INSIDE, *Defect)))
    match = re.fullmatch(rf"({words})@(\w+?)(?:\+([0-9]+))?:([^:]+)(?::([0-9]+\.?[0-9]*))?", text)
    known: dict[str, Fault | Defect] = {fault.value: fault for fault in (*Defect, *INSIDE)}
    fault = known[match[1]] if match is not None else None
    if match is None or fault is None or not _time_fits(fault, match[5]):
        raise BadInput(
            f"LIVER_FAULT={text!r} is not allowed; allowed: FAULT@POINT[+N]:WORKER, delay@POINT:WORKER:SECONDS, and "
            f"SECONDS for stop and disk-full; faults: {words.replace('|', ', ')}"
        )
    return _Injection(fault, match[2], match[4], float(match[5] or 0.0), int(match[3] or 0))


def _time_fits(fault: Fault | Defect, seconds: str | None) -> bool:
    must = _TIMED.get(fault) if isinstance(fault, Fault) else None
    return not must if seconds is None else must is not None


_fault = _parse(os.environ["LIVER_FAULT"]) if os.environ.get("LIVER_FAULT") else None
_done: _Injection | None = None
_passed = 0


def _concerns(point: str, worker: str) -> bool:
    return _fault is not None and _fault.point == point and fnmatch(worker, _fault.worker)


def ignores(point: str, worker: str) -> bool:
    """Return whether the worker is to ignore what happens at the point."""
    return _fault is not None and _fault.fault is Fault.IGNORE and _concerns(point, worker)


def reach(point: str, worker: str) -> None:
    """Mark that the worker has reached the point, and do the fault there if that is asked for."""
    _reach(point, worker)


def _reach(point: str, worker: str) -> bool:
    """Count an arrival at a point, as :func:`reach` says; returns whether the fault is due now."""
    global _done, _passed
    if _fault is None or not _concerns(point, worker) or _fault is _done or isinstance(_fault.fault, Defect):
        return False
    if _passed < _fault.after:
        _passed += 1
        return False
    if _fault.fault not in _AGAIN or point == _REPLAYED:
        _done = _fault
    log.warning("%s at %s: %s", worker, point, _fault.fault.value)
    _do(_fault, point, worker)
    return True


def _do(injection: _Injection, point: str, worker: str) -> None:
    fault, seconds = injection.fault, injection.seconds
    if fault is Fault.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault is Fault.FAIL:
        raise LiverError(f"LIVER_FAULT: {worker} fails at {point}")
    elif fault is Fault.DELAY:
        time.sleep(seconds)
    elif fault is Fault.STOP:
        if seconds:
            # Somebody else has to wake it.
            subprocess.Popen(["/bin/sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault is Fault.CUT:
        Victim(os.getpid()).cut()
    elif fault is Fault.DISK_FULL:
        restore = Victim(os.getpid()).limit_files()
        if seconds:
            timer = threading.Timer(seconds, restore)
            timer.daemon = True
            timer.start()


def _defect(point: str, worker: str) -> Defect | None:
    """Return the defect that is to be done to a worker at a point; None: there is none."""
    if _fault is None or not _concerns(point, worker):
        return None
    wanted = Defect.CORRUPT if (_fault.fault, point) == (Fault.CORRUPT, "received") else _fault.fault
    return wanted if isinstance(wanted, Defect) else None


def _done_to(worker: str, defect: Defect, what: str) -> None:
    log.warning("%s has a defect: %s of %s", worker, defect.value, what)


def planned(worker: str, moves: RankMoves) -> RankMoves:
    """Mark that a worker knows its moves; returns those that it makes."""
    defect = _defect("plan", worker)
    if defect is None:
        return moves
    from liver_slurm.worker import defects

    change = {Defect.DROPPED: defects.without_a_name, Defect.WRONG_EXPERT: defects.with_a_wrong_expert}[defect]
    moves, name = change(moves)
    _done_to(worker, defect, name or "nothing")
    return moves


def received(worker: str, boxes: Sequence[SharedBox]) -> None:
    """Mark that boxes have arrived in the worker's new state, before their digests are compared."""
    reach("received", worker)
    defect = _defect("received", worker)
    if defect is not None:
        from liver_slurm.worker import defects

        name = defects.spoil(defect, boxes)
        if name:
            _done_to(worker, defect, name)


def updates(worker: str, made: int) -> int:
    """Mark that a worker has learnt how many updates the optimizer has made; returns what it takes for that."""
    defect = _defect("updates", worker)
    if defect is not Defect.STEP_RESET:
        return made
    _done_to(worker, defect, "the optimizer")
    return 0


def position(worker: str, step: int) -> int:
    """Mark that a worker is at the step of a cutover; returns the one that it takes for that."""
    defect = _defect("position", worker)
    if defect is not Defect.WRONG_POSITION:
        return step
    _done_to(worker, defect, "the samples")
    return step + 1


def replays(worker: str, make: Replay) -> Replay:
    """Return what makes the updates of the mirror that a worker keeps: ``make``, or what does one of them wrongly."""
    if _fault is None or not _concerns(_REPLAYED, worker):
        return make
    wanted = _fault.fault

    def faulty(boxes: Sequence[TrainedBox], updates: int, groups: Groups) -> None:
        wrong = _reach(_REPLAYED, worker)
        times = {Fault.IGNORE.value: 0, Fault.DOUBLE.value: 2}.get(wanted.value, 1)
        for _ in range(times if wrong else 1):
            make(boxes, updates, groups)
        if wrong and wanted is Fault.CORRUPT:
            _flip(boxes[0].master)

    return faulty


def _flip(box: torch.Tensor) -> None:
    """Flip a bit of the first element."""
    import torch

    first = box[tuple(slice(0, 1) for _ in box.shape)]
    first.copy_((first.contiguous().view(torch.uint8) ^ 1).view(box.dtype))
