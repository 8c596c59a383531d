"""Has Slurm take nodes of the live job back, in a thread of its own: it may take its time."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from liver_slurm.coordinator.interface import GiveBack, GivenBack, Input
from liver_slurm.errors import ClusterError


class NodeReturner(Protocol):
    """Whoever can take nodes of the live job back."""

    def give_back(self, component: int, keep: int) -> tuple[tuple[str, ...], bool]:
        """Take all but the first ``keep`` nodes of a component; 0: end it.

        Returns:
            the nodes that are free now, and whether single nodes of it may be given back once more.

        Raises:
            ClusterError: Slurm refused.
        """

    def stop(self) -> None:
        """Do not wait for nodes any more."""


class NodeReturn:
    """Runs one such call at a time; :meth:`poll` yields what came of it."""

    def __init__(self, returner: NodeReturner) -> None:
        self._returner = returner
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="node-return")
        self._pending: list[tuple[GiveBack, Future[tuple[tuple[str, ...], bool]]]] = []

    def give_back(self, order: GiveBack) -> None:
        """Begin."""
        self._pending.append((order, self._thread.submit(self._returner.give_back, order.component, order.keep)))

    def poll(self, now: float) -> list[Input]:
        """Answers that have come."""
        done = [entry for entry in self._pending if entry[1].done()]
        self._pending = [entry for entry in self._pending if not entry[1].done()]
        return [_answer(order, future, now) for order, future in done]

    def close(self) -> None:
        """What Slurm was told holds; nobody waits for it."""
        self._returner.stop()
        self._thread.shutdown(cancel_futures=True)


def _answer(order: GiveBack, future: Future[tuple[tuple[str, ...], bool]], now: float) -> GivenBack:
    try:
        nodes, again = future.result()
    except ClusterError as error:
        return GivenBack(now, order.component, order.keep, error=str(error))
    return GivenBack(now, order.component, order.keep, nodes, again)
