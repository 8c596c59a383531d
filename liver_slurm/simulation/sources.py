"""Where the trace of each seed comes from, and what is done with it before anything runs on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.load import Load, generate
from liver_slurm.simulation.trace import Trace, cut, with_deaths
from liver_slurm.simulation.trace_files import read_trace

REPAIR = 3600.0
"""Seconds for which a node is away that has died."""


@dataclass(frozen=True)
class Source:
    """A file of any known form, see :func:`~liver_slurm.simulation.trace_files.read_trace`, or a load to be drawn."""

    origin: Path | Load
    interval: float | None = None
    nodes: int | None = None
    partition: str = ""
    hours: float | None = None
    """Of the trace's beginning; None: all of it."""
    deaths: float = 0.0
    """Sudden ones per 1,000 node-days."""

    def trace(self, seed: int) -> Trace:
        """Make the trace of one seed.

        Each part draws from numbers of its own, so that one option does not change what another one draws.

        Raises:
            BadInput: the file cannot be read, or is of no known form; or a load leaves no node idle.
        """
        trace = self._loaded(self.origin, seed) if isinstance(self.origin, Load) else self._read(self.origin, seed)
        if self.hours is not None:
            trace = cut(trace, self.hours * 3600.0)
        return with_deaths(trace, self.deaths, REPAIR, Random(f"deaths {seed}"))

    def _read(self, path: Path, seed: int) -> Trace:
        random = Random(f"nodes {seed}")
        return read_trace(path, random, interval=self.interval, nodes=self.nodes, partition=self.partition)

    def _loaded(self, load: Load, seed: int) -> Trace:
        if self.interval is not None or self.nodes is not None or self.partition:
            raise BadInput("--interval, --nodes and --partition are for --trace; a load has its own nodes=N")
        trace = generate(load, Random(f"load {seed}"))
        if not trace.spans:
            raise BadInput(f"--load: seed {seed} leaves no node idle; write a lower utilization")
        return trace
