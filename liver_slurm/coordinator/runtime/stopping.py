"""What a signal to the coordinator's process means: only Slurm knows whether its job is cancelled or requeued."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from liver_slurm.base.errors import ClusterError
from liver_slurm.coordinator.core.io import Input, Interrupted, StopAsked
from liver_slurm.scheduler.ports import Fate


class Stopping:
    """Turns signals into inputs of the state machine; Slurm is asked in a thread, for it may take its time."""

    def __init__(self, ask: Callable[[], tuple[Fate, str]] | None) -> None:
        """``ask``: what becomes of the live job, and why; None: it is no Slurm job, and a signal ends the run."""
        self._ask = ask
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stopping")
        self._signal: str | None = None
        self._answer: Future[tuple[Fate, str]] | None = None

    def signalled(self, name: str) -> None:
        """A signal has come; may be called from its handler."""
        self._signal = name

    def poll(self, now: float) -> list[Input]:
        """What has become known of signals."""
        if self._signal is not None and self._answer is None:
            name, self._signal = self._signal, None
            if self._ask is None:
                return [StopAsked(now, f"cancelled by {name}")]
            self._answer = self._thread.submit(self._ask)
        if self._answer is None or not self._answer.done():
            return []
        answer, self._answer = self._answer, None
        return [_judge(answer, now)]


def _judge(answer: Future[tuple[Fate, str]], now: float) -> Input:
    try:
        fate, reason = answer.result()
    except ClusterError as error:
        # The journal must not call a run over that may be in the queue: if it is not, Slurm's own record says so.
        return Interrupted(now, f"told to end, and Slurm does not say why: {error}", requeued=True)
    if fate in ("requeued", "preempted"):
        return Interrupted(now, reason, requeued=fate == "requeued")
    return StopAsked(now, "cancelled by a signal" if fate == "running" else f"cancelled: {reason}")
