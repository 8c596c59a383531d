"""Two processes that call functions when told to: the two ends of a link, each with a card where there are enough.

An end keeps what its functions leave in their modules, so that one call can allocate a buffer and the next fill it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

from liver_slurm.base.errors import LiverError, first_line

PATIENCE = 120.0
"""Seconds that a call may take."""


@dataclass(frozen=True)
class TwoEnds:
    """Both processes; they are numbered 0 and 1."""

    connections: tuple[Connection, Connection]
    cards: int
    """CUDA cards of this machine; an end uses the one of its number, or none."""

    def call(self, end: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a module's function in one end; returns what it returns.

        Raises:
            LiverError: it raised an error, or the end is gone.
        """
        self._tell(end, function, arguments)
        return self._answer(end)

    def both(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, Any]:
        """Make a call in each end at the same time: a function and its arguments; errors as of :meth:`call`."""
        for end, (function, *arguments) in enumerate((first, second)):
            self._tell(end, function, tuple(arguments))
        return self._answer(0), self._answer(1)

    def _tell(self, end: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self.connections[end].send((function.__module__, function.__name__, arguments))
        except BrokenPipeError:
            raise LiverError(f"end {end} of the link has died") from None

    def _answer(self, end: int) -> Any:
        connection = self.connections[end]
        if not connection.poll(PATIENCE):
            raise LiverError(f"end {end} of the link does not answer after {PATIENCE:g} s")
        try:
            error, value = connection.recv()
        except EOFError:
            raise LiverError(f"end {end} of the link has died") from None
        if error:
            raise LiverError(error)
        return value


@contextmanager
def two_ends(cards: int) -> Iterator[TwoEnds]:
    """Start both processes, and end them when the block is left; ``cards``: CUDA cards of this machine."""
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards)))).split(",")
    with ExitStack() as stack:
        connections = [
            stack.enter_context(_end({"CUDA_VISIBLE_DEVICES": visible[number]} if number < cards else {}))
            for number in range(2)
        ]
        yield TwoEnds((connections[0], connections[1]), cards)


@contextmanager
def _end(environment: dict[str, str]) -> Iterator[Connection]:
    here, there = Pipe()
    # In a session of its own it does not hear a terminal's Ctrl-C, which is for us.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(there.fileno())],
        env={**os.environ, **environment},
        pass_fds=[there.fileno()],
        start_new_session=True,
    )
    there.close()
    with here:
        try:
            yield here
        finally:
            process.kill()
            process.wait()


def _serve(orders: Connection) -> None:
    """Be an end: do what comes, until the other side closes."""
    while True:
        try:
            module, name, arguments = orders.recv()
        except EOFError:
            return
        try:
            answer = "", getattr(importlib.import_module(module), name)(*arguments)
        except Exception as error:  # noqa: BLE001 - it goes to whoever called, who raises it
            answer = first_line(error), None
        orders.send(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
