"""The facts that the doctor gathers, and the findings that it makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from liver_slurm.config.schema import JobConfig, LiveSection, StandbySection
from liver_slurm.scheduler.slurm.records import NodeInfo, PartitionInfo

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    check: str
    """What was looked at, e.g. ``preemption``."""
    status: Status
    text: str
    """What was found."""
    advice: str = ""
    """What to do; empty for ok."""


@dataclass(frozen=True)
class DirectoryReport:
    """How a machine sees the folder of runs."""

    path: str
    """The folder, or the nearest one above it that there is."""
    writable: bool
    free: int
    """Bytes that a user may still write."""
    file_system: str
    """e.g. ``nfs4``; empty if unknown."""
    token: str | None = None
    """What the doctor's file in it holds, as seen from there; None: there is no such file."""
    lock: str = ""
    """What came of locking that file, on which the doctor holds a lock: ``refused``, ``granted``, or why it could
    not be tried; empty: it was not."""
    umask: int = 0o022
    """Permissions that new files of this user lack there."""


@dataclass(frozen=True)
class Card:
    """One GPU."""

    name: str
    """e.g. ``NVIDIA H100 80GB HBM3``."""
    capability: tuple[int, int]
    """Its compute capability."""


@dataclass(frozen=True)
class TorchReport:
    """What torch said when a process of its own imported it."""

    error: str = ""
    """Why it could not be imported; empty: it could."""
    cuda: str | None = None
    """CUDA version that it was built for."""
    cards: Sequence[Card] = ()
    """GPUs that it can use."""


@dataclass(frozen=True)
class Report:
    """What a probe saw on one machine."""

    host: str
    """Slurm's name of the node, or the host's."""
    python: str
    versions: Mapping[str, str | None]
    """Package → installed version; None: not installed."""
    interfaces: Mapping[str, str]
    """Network interface → IPv4 address, without loopback."""
    directory: DirectoryReport
    gpus: int | None
    """GPUs that nvidia-smi lists; None: there is no nvidia-smi."""
    gpu_error: str
    """What nvidia-smi said when it failed."""
    torch: TorchReport | None
    """None: not asked for."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """host → why no connection to it could be made; hosts that could be reached are in ``reached``."""
    reached: Sequence[str] = ()


@dataclass(frozen=True)
class Look:
    """One node as it was seen through a short job; without a report, why there is none."""

    partition: str
    gpus_asked: int
    host: str = ""
    report: Report | None = None
    reason: str = ""
    """Why there is no report."""
    busy: bool = False
    """There was no free node in time: nothing is wrong."""
    clock_ahead: float | None = None
    """Seconds that the node's clock is ahead of ours."""
    clock_uncertainty: float = 0.0
    unreached_from_here: str = ""
    """Why this machine could not connect to the node; empty: it could."""


@dataclass(frozen=True)
class SlurmFacts:
    """Slurm's version, settings, partitions and nodes."""

    version: tuple[int, int, int]
    client: str
    """What it is asked through."""
    config: Mapping[str, str]
    """``scontrol show config``."""
    partitions: Sequence[PartitionInfo]
    nodes: Mapping[str, Sequence[NodeInfo]]
    """Partition → its nodes, for the partitions of the job."""
    problems: Sequence[str]
    """Why this cluster can never run the job."""


@dataclass(frozen=True)
class Facts:
    """All gathered facts."""

    config: JobConfig
    """A job file's; or the site file's, and then it has no model."""
    here: Report
    requirements: Mapping[str, str]
    """Package → version specifier that this package asks for."""
    slurm: SlurmFacts | None
    slurm_error: str = ""
    """Why Slurm could not be asked."""
    slurm_missing: bool = False
    """There is no Slurm on this machine, so none that could fail."""
    pyslurm: str | None = None
    """Installed version of pyslurm."""
    munge_error: str | None = None
    """What munge said against a credential made and read here; None: not tried."""
    token: str | None = None
    """What the doctor's file in the folder of runs holds; None: none could be written."""
    looks: Sequence[Look] = ()
    not_looked: str = ""
    """Why no node was looked at; empty: some were."""


def wanted_partitions(
    live: LiveSection, standby: StandbySection, known: Sequence[PartitionInfo] = ()
) -> dict[str, int]:
    """Map each partition that the job uses to the GPUs of a worker there.

    Args:
        known: the cluster's partitions, of which one may be the default.
    """
    default = next((one.name for one in known if one.is_default), None)
    wanted: dict[str, int] = {}
    for name, gpus in (
        *((one.partition or live.partition or default, one.gpus_per_task) for one in live.component),
        (live.coordinator_partition or live.partition or default, 0),
        *((name, standby.gpus_per_task) for name in standby.partitions),
    ):
        if name is not None:
            wanted[name] = max(gpus, wanted.get(name, 0))
    return wanted
