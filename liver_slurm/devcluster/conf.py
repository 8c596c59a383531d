"""Slurm's configuration files for a one-machine cluster: a pure function of what is wanted and of the machine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from liver_slurm.devcluster.ports import PortBlock
from liver_slurm.devcluster.spec import ClusterDir, ClusterSpec

Version = tuple[int, int]

# sbatch to running in about half a second, and the youngest standby taken first. No word here may have `defer` in it:
# slurmctld looks for these letters alone, and then a job waits for its next round, up to 1 s, when nodes become free.
_FAST = (
    "sched_interval=5",
    "sched_min_interval=0",
    "bf_interval=1",
    "bf_continue",
    "batch_sched_delay=0",
    "preempt_youngest_first",
)


@dataclass(frozen=True)
class Machine:
    """What the configuration needs to know about the machine."""

    version: Version
    """Slurm's, e.g. (22, 5)."""
    user: str
    """Who runs the daemons."""
    host: str
    """Short host name."""
    memory_mb: int


def parse_version(text: str) -> Version:
    """Parse a version: ``slurm-wlm 22.05.8`` → (22, 5).

    Raises:
        ValueError: there is no version in ``text``.
    """
    match = re.search(r"\b(\d+)\.(\d+)\b", text)
    if match is None:
        raise ValueError(f"no version number in {text!r}")
    return int(match[1]), int(match[2])


def render(spec: ClusterSpec, machine: Machine, ports: PortBlock) -> dict[str, str]:
    """Return the files of ``etc/`` by name."""
    directory = ClusterDir(spec.directory)
    sections = [
        _identity(directory, machine, ports),
        _daemons(directory),
        _scheduling(spec),
        _version_dependent(spec, machine.version),
        _accounting(spec, directory, ports),
        _nodes(spec, machine, ports),
        _partitions(spec),
        list(spec.extra),
    ]
    files = {
        "slurm.conf": "\n\n".join("\n".join(section) for section in sections if section) + "\n",
        # Without root there are no cgroups to manage; slurmd wants to be told so.
        "cgroup.conf": "CgroupPlugin=" + ("disabled" if machine.version >= (23, 11) else "cgroup/v1") + "\n",
    }
    if spec.gpus_per_node:
        # A count without device files leaves the nodes INVAL; `up` makes links to a device that every machine has.
        files["gres.conf"] = f"Name=gpu Type=fake File={directory.run}/gpu[0-{spec.gpus_per_node - 1}]\n"
    return files


def _identity(directory: ClusterDir, machine: Machine, ports: PortBlock) -> list[str]:
    return [
        "ClusterName=liver",
        f"SlurmctldHost={machine.host}(127.0.0.1)",
        f"SlurmctldPort={ports.slurmctld}",
        f"SrunPortRange={ports.srun[0]}-{ports.srun[1]}",
        f"SlurmUser={machine.user}",
        f"SlurmdUser={machine.user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={directory.munge_socket}",
    ]


def _daemons(directory: ClusterDir) -> list[str]:
    return [
        f"StateSaveLocation={directory.state}",
        f"SlurmdSpoolDir={directory.spool}/%n",
        f"SlurmctldPidFile={directory.run}/slurmctld.pid",
        f"SlurmdPidFile={directory.run}/slurmd.%n.pid",
        f"SlurmctldLogFile={directory.log}/slurmctld.log",
        f"SlurmdLogFile={directory.log}/slurmd.%n.log",
        "SlurmctldDebug=verbose",
        "SlurmdDebug=verbose",
        "LogTimeFormat=iso8601_ms",
        # The node's CPUs are what we say, not what the machine has.
        "SlurmdParameters=config_overrides",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "ReturnToService=2",
        "SlurmdTimeout=30",
        "KillWait=5",
        "InactiveLimit=0",
        "MinJobAge=300",
    ]


def _scheduling(spec: ClusterSpec) -> list[str]:
    lines = [
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SchedulerType=sched/backfill",
        f"SchedulerParameters={','.join(_scheduler(spec))}",
        "PriorityType=priority/basic",
        f"PreemptType=preempt/{'qos' if spec.preempt_type == 'qos' else 'partition_prio'}",
        f"PreemptMode={spec.preempt_mode.upper()}",
        "PreemptExemptTime=0",
        "JobRequeue=1",
    ]
    return [*lines, "GresTypes=gpu"] if spec.gpus_per_node else lines


def _scheduler(spec: ClusterSpec) -> list[str]:
    """Return one word for each name, the later one of two."""
    return list({word.partition("=")[0]: word for word in (*_FAST, *spec.scheduler)}.values())


def _version_dependent(spec: ClusterSpec, version: Version) -> list[str]:
    # The plugin is gone from 23.11 on, and naming it there is fatal.
    lines = ["SwitchType=switch/none"] if version < (23, 11) else []
    if spec.send_user_signal:
        lines.append("=".join(user_signal_setting(version)))
    return lines


def user_signal_setting(version: Version) -> tuple[str, str]:
    """Return the key and value that make preemption send a job the signal of its ``--signal``.

    Each is a fatal error where the other is right. Seen: the first in 22.05, the second in 24.11; the change lies
    somewhere between.
    """
    if version < (23, 11):
        return "SlurmctldParameters", "preempt_send_user_signal"
    return "PreemptParameters", "send_user_signal"


def _accounting(spec: ClusterSpec, directory: ClusterDir, ports: PortBlock) -> list[str]:
    if not spec.accounting:
        return []
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={ports.slurmdbd}",
        f"AccountingStoragePass={directory.munge_socket}",
        "AccountingStorageEnforce=associations,limits,qos",
    ]


def _nodes(spec: ClusterSpec, machine: Machine, ports: PortBlock) -> list[str]:
    first, last = ports.slurmd(0), ports.slurmd(spec.nodes - 1)
    names, numbers = (f"n[1-{spec.nodes}]", f"[{first}-{last}]") if spec.nodes > 1 else ("n1", str(first))
    gres = f" Gres=gpu:fake:{spec.gpus_per_node}" if spec.gpus_per_node else ""
    shape = f"CPUs={spec.cpus_per_node} Boards=1 SocketsPerBoard=1 CoresPerSocket={spec.cpus_per_node} ThreadsPerCore=1"
    where = f"NodeHostname={machine.host} NodeAddr=127.0.0.1 Port={numbers}"
    return [f"NodeName={names} {where} {shape} RealMemory={machine.memory_mb}{gres} State=UNKNOWN"]


def _partitions(spec: ClusterSpec) -> list[str]:
    common = "Nodes=ALL MaxTime=INFINITE State=UP"
    preemption = f"PreemptMode={spec.preempt_mode.upper()} GraceTime={spec.grace}"
    return [
        f"PartitionName=live {common} Default=YES PriorityTier=100 PreemptMode=OFF",
        f"PartitionName=prod {common} PriorityTier=50 PreemptMode=OFF",
        f"PartitionName=scavenger {common} PriorityTier=1 {preemption}",
    ]


def render_slurmdbd(spec: ClusterSpec, machine: Machine, ports: PortBlock, password: str) -> str:
    """slurmdbd.conf; it holds the database's password, so it is written with mode 0600."""
    directory = ClusterDir(spec.directory)
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={directory.munge_socket}",
        f"DbdHost={machine.host}",
        "DbdAddr=127.0.0.1",
        f"DbdPort={ports.slurmdbd}",
        f"SlurmUser={machine.user}",
        f"LogFile={directory.log}/slurmdbd.log",
        f"PidFile={directory.run}/slurmdbd.pid",
        "DebugLevel=verbose",
        "StorageType=accounting_storage/mysql",
        "StorageHost=127.0.0.1",
        f"StoragePort={ports.database}",
        "StorageUser=slurm",
        f"StoragePass={password}",
        "StorageLoc=slurm_acct_db",
    ]
    return "\n".join(lines) + "\n"
