"""Has Slurm take nodes of the live job back, in a thread of its own: it may take its time."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from liver_slurm.base.errors import ClusterError
from liver_slurm.coordinator.core.io import GiveBack, GivenBack, Input
from liver_slurm.scheduler.ports import NodeReturner


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
