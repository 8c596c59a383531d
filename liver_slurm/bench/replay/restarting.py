"""The run that restarts: for each change of its nodes it saves, ends all processes, and starts others from the save.

At its best: it hears of nodes and notices at once, saves and loads through the product's own checkpoints, and nothing
of it starts or ends that need not. Its guaranteed workers hold no job of Slurm: nobody wants their nodes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import LiverError
from liver_slurm.bench.replay.holders import Holders
from liver_slurm.bench.replay.restart_orders import Orders, read_steps, steps_file, stop_file
from liver_slurm.config.load import save_job
from liver_slurm.scheduler.local.process import start, worker_environment
from liver_slurm.simulation.capacity import Capacity


@dataclass
class RestartedWorld:
    """One world and its processes."""

    orders: Orders
    size: int
    used: frozenset[str]
    """Jobs of the reclaimable nodes that it has."""
    store: Any
    """Where its processes find each other."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    live: bool = False
    """It has trained its first step."""


class RestartingRun:
    """One run, world after world, in turns."""

    def __init__(self, capacity: Capacity, every_s: float | None, folder: Path) -> None:
        """Start the first world, on guaranteed workers.

        Args:
            capacity: the job, and which layout is the fastest for how many workers.
            every_s: seconds between two checkpoints on the way; None: it writes none but for changes.
            folder: where everything of it lies.
        """
        self._capacity, self._every, self._folder = capacity, every_s, folder
        folder.mkdir(parents=True)
        save_job(capacity.config, folder / "job.json")
        self._holders: Holders | None = None
        self.worlds: list[RestartedWorld] = []
        self._stopping = False
        self._start(())

    @property
    def _world(self) -> RestartedWorld:
        return self.worlds[-1]

    @property
    def trains(self) -> bool:
        """Whether the present world has trained a step.

        Raises:
            LiverError: one of its processes has ended.
        """
        world = self._world
        codes = [process.poll() for process in world.processes]
        if not self._stopping and any(code is not None for code in codes):
            raise LiverError(f"the run that restarts has lost a process: {codes}; see {self._folder / 'logs'}")
        if not world.live:
            world.live = bool(read_steps(steps_file(world.orders)))
        return world.live

    def wait_for_nodes(self, count: int, without: str) -> None:
        """Ask for ``count`` reclaimable nodes, from now on. ``without``: those that are not, as Slurm's --exclude."""
        self._holders = Holders(count, without, self._folder / "holders")

    def turn(self) -> None:
        """Do what is to be done now."""
        assert self._holders is not None
        ready, world = self._holders.ready(), self._world
        taken = not world.used <= set(ready)
        if self._stopping:
            if all(process.poll() is not None for process in world.processes):
                self._next(ready)
        elif not self.trains:
            if taken:  # what has not begun has nothing to save
                self._kill(world)
                self._next(ready)
        elif taken or self._is_faster(len(ready)):
            stop_file(world.orders).touch()
            self._stopping = True
        self._holders.give_back(self._world.used)

    def close(self) -> None:
        """End everything of it."""
        self._kill(self._world)
        if self._holders is not None:
            self._holders.close()

    def _is_faster(self, nodes: int) -> bool:
        speeds, capacity = self._capacity.speeds, self._capacity
        now, then = speeds.best(self._world.size), speeds.best(capacity.workers(nodes))
        return now is not None and then is not None and speeds.step_s(then) < speeds.step_s(now)

    def _next(self, ready: list[str]) -> None:
        self._end(self._world)
        self._stopping = False
        self._start(tuple(ready))

    def _start(self, ready: tuple[str, ...]) -> None:
        """Start the fastest world of the guaranteed workers and these nodes, from the newest checkpoint."""
        import torch.distributed as dist

        layout = self._capacity.speeds.best(self._capacity.workers(len(ready)))
        if layout is None:
            raise LiverError("no layout fits on the guaranteed workers")
        number, step = len(self.worlds), self._saved()
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        orders = Orders(
            job_file=str(self._folder / "job.json"),
            layout=str(layout),
            port=store.port,
            generation=number,
            folder=str(self._folder),
            step=step,
            load=step > 0,
            every_s=self._every,
        )
        each = max(1, self._capacity.workers(1) - self._capacity.guaranteed)
        used = frozenset(ready[: -(-(layout.size - self._capacity.guaranteed) // each)])
        world = RestartedWorld(orders, layout.size, used, store)
        self.worlds.append(world)
        file = self._folder / f"orders-{number}.json"
        file.write_bytes(msgspec.json.encode(orders))
        for rank in range(layout.size):
            log = self._folder / "logs" / f"{number}-{rank}.log"
            environment = worker_environment(rank, self._capacity.most, gpus=False)
            arguments = [str(file), str(rank)]
            module = "liver_slurm.bench.replay.restart_worker"
            world.processes.append(start(module, arguments, log, environment, signal.SIGKILL))

    def _saved(self) -> int:
        """Return the step of the newest checkpoint; 0: there is none."""
        found = [one for world in self.worlds for one in read_steps(steps_file(world.orders)) if one.save_s > 0.0]
        return max((one.step for one in found), default=0)

    def _kill(self, world: RestartedWorld) -> None:
        for process in world.processes:
            process.kill()
        self._end(world)

    def _end(self, world: RestartedWorld) -> None:
        """Collect processes that end, and what they have started: megatron-core's helpers outlive their parents."""
        for process in world.processes:
            process.wait()
            with contextlib.suppress(ProcessLookupError):  # it has started nothing that is left
                os.killpg(process.pid, signal.SIGKILL)
