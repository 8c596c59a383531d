"""What a one-machine cluster is made of, and where its files lie."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from liver_slurm.base.errors import BadInput

MAX_NODES = 1000
DEFAULT_DIRECTORY = Path("~/.liver-slurm/cluster")
# Sockets live in the directory, and a Unix socket's path has room for 107 characters.
_MAX_PATH = 80


@dataclass(frozen=True)
class ClusterSpec:
    """What ``cluster up`` was asked for.

    Raises:
        BadInput: a number is out of its range, or the directory's path cannot be written in slurm.conf.
    """

    directory: Path
    nodes: int = 6
    cpus_per_node: int = 4
    gpus_per_node: int = 2
    """Fake GPUs: Slurm schedules them and sets CUDA_VISIBLE_DEVICES; nothing is behind them. 0: none."""
    grace: int = 10
    """GraceTime of the scavenger partition, seconds."""
    preempt_mode: Literal["cancel", "requeue"] = "cancel"
    preempt_type: Literal["partition", "qos"] = "partition"
    """Who preempts whom: partitions of a higher tier, or QOSs, which need ``accounting``."""
    send_user_signal: bool = False
    """Preemption sends a job the signal of its ``--signal`` in place of SIGTERM."""
    accounting: bool = False
    """Run slurmdbd on a MariaDB of its own."""
    port: int | None = None
    """First port of the cluster's block; None: a free block is looked for."""
    scheduler: tuple[str, ...] = ()
    """SchedulerParameters that differ from those of a small cluster, which are to be fast."""
    extra: tuple[str, ...] = ()
    """Further lines of slurm.conf, put last."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("--nodes", self.nodes, 1, MAX_NODES),
            ("--cpus-per-node", self.cpus_per_node, 1, 1024),
            ("--gpus-per-node", self.gpus_per_node, 0, 64),
            ("--grace", self.grace, 0, 3600),
        ):
            if not low <= value <= high:
                raise BadInput(f"{name} {value}: must be between {low} and {high}")
        if self.preempt_type == "qos" and not self.accounting:
            raise BadInput("preemption by QOS needs accounting: QOSs are kept by slurmdbd")
        path = str(self.directory)
        if not re.fullmatch(r"/[\w./+@-]*", path) or len(path) > _MAX_PATH:
            raise BadInput(
                f"--dir {path}: must be an absolute path of at most {_MAX_PATH} letters, digits and ._+@- "
                "(Slurm's configuration and Unix sockets allow no other)"
            )


@dataclass(frozen=True)
class ClusterDir:
    """Paths inside one cluster's directory; nothing here touches the disk."""

    path: Path

    @property
    def etc(self) -> Path:
        """slurm.conf and its companions."""
        return self.path / "etc"

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF points to."""
        return self.etc / "slurm.conf"

    @property
    def log(self) -> Path:
        """Logs of all daemons."""
        return self.path / "log"

    @property
    def run(self) -> Path:
        """Sockets, pid files, fake GPUs."""
        return self.path / "run"

    @property
    def state(self) -> Path:
        """slurmctld's state; fresh at each ``up``, because a drained node stays drained in it."""
        return self.path / "state"

    @property
    def spool(self) -> Path:
        """slurmd's spool, a folder a node."""
        return self.path / "spool"

    @property
    def munge(self) -> Path:
        """munged's key and seed: 0700."""
        return self.path / "munge"

    @property
    def database(self) -> Path:
        """MariaDB's data, where accounting is wanted."""
        return self.path / "database"

    @property
    def munge_socket(self) -> Path:
        """munged's socket."""
        return self.run / "munge.sock"

    @property
    def record(self) -> Path:
        """What was brought up, JSON; its presence makes a directory a cluster's."""
        return self.path / "cluster.json"

    @property
    def lock(self) -> Path:
        """Held during ``up`` and ``down``."""
        return self.path / "lock"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders that ``up`` makes and ``down`` removes."""
        return (self.etc, self.log, self.run, self.state, self.spool, self.munge, self.database)


def resolve_directory(directory: str | os.PathLike[str] | None) -> Path:
    """Return the absolute path of ``--dir``, or the default one."""
    return Path(os.path.abspath(Path(directory or DEFAULT_DIRECTORY).expanduser()))
