"""What both runs of a replay have in common: the cluster, the job, and the trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from liver_slurm.base import interrupts
from liver_slurm.bench.replay.schedule import Reclaim, draw, trace_of
from liver_slurm.config.load import load_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.devcluster.lifecycle import down, up
from liver_slurm.devcluster.spec import ClusterSpec
from liver_slurm.simulation.setting import QueueWait, Setting

GUARANTEED = 2
FIXED = 1 + GUARANTEED
"""Nodes that nobody wants: the coordinator's and those of the guaranteed workers."""
FIXED_NAMES = f"n[1-{FIXED}]"
JOB_FILE = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


@dataclass(frozen=True)
class Replay:
    """One trace to be replayed, and the job that trains on it."""

    folder: Path
    """Where everything of it lies."""
    seconds: float
    nodes: int
    """Reclaimable ones."""
    notice: int
    seed: int

    @cached_property
    def reclaims(self) -> tuple[Reclaim, ...]:
        """What production wants when."""
        return draw(self.seconds, self.nodes, self.notice, self.seed)

    def names(self) -> list[str]:
        """Name the reclaimable nodes: the last ones, so that the guaranteed job gets the others."""
        return [f"n{FIXED + 1 + number}" for number in range(self.nodes)]

    def setting(self, queue_s: float = 0.0) -> Setting:
        """Return what is simulated. ``queue_s``: what Slurm takes to start a job on an idle node."""
        trace = trace_of(self.reclaims, self.seconds, self.nodes, self.notice)
        return Setting(trace, float(self.notice), QueueWait("fixed", queue_s, queue_s), self.seed)

    def config(self) -> JobConfig:
        """Return the job: any number of replicas, on a cluster that is ours alone."""
        layouts = [f"tp1pp1dp{number}" for number in range(GUARANTEED, GUARANTEED + self.nodes + 1)]
        changes = {
            "job.run_root": f'"{self.folder / "runs"}"',
            "train.steps": 10**8,
            "elastic.initial": f'"{layouts[0]}"',
            "elastic.layouts": str(layouts),
            "standby.max_jobs": self.nodes,
            # Spans of the trace are short; by the defaults a partition whose nodes go within a minute is left alone.
            "standby.hold": 5,
            "standby.poll": 0.5,
            "checkpoint.every": 0,
            "checkpoint.at_end": "false",
        }
        return load_job(JOB_FILE, [f"{key}={value}" for key, value in changes.items()])

    def named(self, name: str) -> Replay:
        """Return the same with a folder of its own inside this one's."""
        return replace(self, folder=self.folder / name)

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """Bring up a cluster for the block, with SLURM_CONF pointing at it."""
        with interrupts.temporary_folder("liver-replay-", keep_failed=True) as folder:
            spec = ClusterSpec(
                directory=folder / "cluster", nodes=FIXED + self.nodes, cpus_per_node=1, gpus_per_node=0,
                grace=self.notice,
            )  # fmt: skip
            os.environ["SLURM_CONF"] = str(up(spec).slurm_conf)
            try:
                yield
            finally:
                del os.environ["SLURM_CONF"]  # which would name what is not there any more
                if not interrupts.interrupted():  # else it is killed, with everything that the replay has started
                    down(spec.directory)
