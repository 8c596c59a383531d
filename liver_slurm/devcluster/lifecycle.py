"""Up, status and down of a one-machine cluster."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, ClusterError
from liver_slurm.devcluster import accounting, processes
from liver_slurm.devcluster.conf import Machine, parse_version, render
from liver_slurm.devcluster.ports import PortBlock, choose_block, port_lock
from liver_slurm.devcluster.spec import ClusterDir, ClusterSpec
from liver_slurm.scheduler.slurm.command import INSTALL, NotAnswering, run_once

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel")
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"])
_START = 60.0
"""Seconds that a daemon has to come up; it takes well under one on an idle machine."""
_KILL_WAIT = 20.0


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    directory: Path
    version: str
    nodes: int
    port: int
    accounting: bool

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF has to be."""
        return ClusterDir(self.directory).slurm_conf


def up(spec: ClusterSpec) -> Cluster:
    """Bring a cluster up in ``spec.directory``; returns when all its nodes are idle.

    Raises:
        BadInput: a cluster runs there, the directory holds something else, or a wanted port is in use.
        ClusterError: a program is missing, or a daemon did not come up (quoting its log, which is left there).
    """
    programs = find_programs(spec.accounting)
    directory = ClusterDir(spec.directory)
    with interrupts.orderly(), _locked(directory, create=True):
        _refuse_occupied(directory)
        # The ports are ours for certain only when the daemons listen on them.
        with port_lock():
            ports = choose_block(spec.nodes, spec.port)
            try:
                _make_folders(spec, directory)
                return _start(spec, directory, programs, ports)
            except KeyboardInterrupt as error:
                if left := _end_processes(directory, patience=0.0):
                    raise interrupts.Interrupted(interrupts.number_of(error), left) from error
                _remove_files(directory)  # nobody has to read the logs of it
                raise
            except BaseException as error:
                if left := _end_processes(directory, patience=3.0):
                    raise ClusterError(f"{error}; {left}") from error
                raise


def down(path: Path) -> None:
    """Cancel the cluster's jobs, end its daemons, remove its files; nothing is left.

    Raises:
        BadInput: there is no cluster in ``path``.
        ClusterError: a process could not be ended; the files stay, so that it can be tried again.
    """
    directory = _existing(path)
    with _locked(directory):
        if _is_up(directory):
            _cancel_jobs(directory)
        # A slurmd with live steps would linger and hit same-numbered jobs of the next cluster: hence jobs first, and
        # daemons found by their environment, as such a slurmd has removed its pid file.
        if left := _end_processes(directory, patience=5.0):
            raise ClusterError(left)
        _remove_files(directory)


def _end_processes(directory: ClusterDir, patience: float) -> str:
    """End the cluster's processes; returns what to say of those that are left, nothing where none is."""
    if not (left := processes.end_all(directory.slurm_conf, patience)):
        return ""
    path = directory.path
    return f"processes {left} of {path} could not be ended: liver-slurm cluster down --dir {path} tries again"


def _remove_files(directory: ClusterDir) -> None:
    for folder in directory.folders:
        if folder.exists():
            shutil.rmtree(folder)
    directory.record.unlink(missing_ok=True)


def status(path: Path) -> dict[str, Any]:
    """Return the JSON document of ``cluster status``: dir, slurm_conf, running, version, daemons, nodes, partitions,
    jobs.

    Raises:
        BadInput: there is no cluster in ``path``.
        ClusterError: its slurmctld runs and does not answer.
    """
    directory = _existing(path)
    cluster = load(path)
    daemons = processes.names(processes.cluster_processes(directory.slurm_conf))
    document: dict[str, Any] = {
        "dir": str(path),
        "slurm_conf": str(directory.slurm_conf),
        "version": cluster.version,
        "running": "slurmctld" in daemons,
        "daemons": daemons,
        "nodes": [],
        "partitions": [],
        "jobs": 0,
    }
    if document["running"]:
        environment = _environment(directory)
        for line in run_once(["sinfo", "-h", "-N", "-o", "%N %T %C %G"], 10, environment).splitlines():
            name, state, cpus, gres = line.split()
            node = {"name": name, "state": state, "cpus_allocated_idle_other_total": cpus, "gres": gres}
            if node not in document["nodes"]:  # a line for each partition of the node
                document["nodes"].append(node)
        document["partitions"] = run_once(["sinfo", "-h", "-o", "%R"], 10, environment).split()
        document["jobs"] = len(run_once(["squeue", "-h", "-o", "%i"], 10, environment).split())
    return document


def load(path: Path) -> Cluster:
    """Return the cluster in ``path``, up or not.

    Raises:
        BadInput: there is none.
    """
    directory = _existing(path)
    if not directory.record.is_file():
        raise BadInput(f"the cluster in {path} did not come up; its logs are in {directory.log}")
    record = json.loads(directory.record.read_text())
    return Cluster(path, record["version"], record["nodes"], record["port"], record["accounting"])


def find_programs(with_accounting: bool) -> dict[str, str]:
    """Return the path of each program that a cluster needs.

    Raises:
        ClusterError: some are missing; the message has the command that installs them.
    """
    wanted = PROGRAMS + (accounting.PROGRAMS if with_accounting else ())
    found = {program: shutil.which(program, path=SEARCH_PATH) for program in wanted}
    missing = [program for program, path in found.items() if path is None]
    if missing:
        install = f"{INSTALL} {accounting.PACKAGES}" if with_accounting else INSTALL
        raise ClusterError(f"missing on this machine: {', '.join(missing)}; install them with: {install}")
    return {program: path for program, path in found.items() if path is not None}


def _start(spec: ClusterSpec, directory: ClusterDir, programs: Mapping[str, str], ports: PortBlock) -> Cluster:
    environment = _environment(directory)
    version = run_once([programs["slurmctld"], "-V"], 10).split()[-1]
    machine = Machine(
        version=parse_version(version),
        user=getpass.getuser(),
        host=socket.gethostname().split(".")[0],
        memory_mb=psutil.virtual_memory().total >> 20,
    )
    for name, text in render(spec, machine, ports).items():
        (directory.etc / name).write_text(text)
    _start_munged(directory, programs, environment)
    if spec.accounting:
        accounting.start_accounting(spec, machine, ports, programs, environment)
    _start_slurm(spec, directory, programs, environment)
    record = {"version": version, "nodes": spec.nodes, "port": ports.base, "accounting": spec.accounting}
    directory.record.write_text(json.dumps(record) + "\n")
    return load(spec.directory)


def _start_munged(directory: ClusterDir, programs: Mapping[str, str], environment: Mapping[str, str]) -> None:
    key = directory.munge / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    argv = [
        programs["munged"],
        # A socket under a home directory that others cannot enter is refused without it; here it is only ours.
        "--force",
        f"--key-file={key}",
        f"--seed-file={directory.munge}/seed",
        f"--socket={directory.munge_socket}",
        f"--pid-file={directory.run}/munged.pid",
        f"--log-file={directory.log}/munged.log",
        "--num-threads=4",
    ]
    run_once(argv, 20, environment)


def _start_slurm(
    spec: ClusterSpec, directory: ClusterDir, programs: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Start slurmctld and a slurmd a node; returns when every node is idle."""
    boot = directory.log / "boot.log"
    with boot.open("ab") as log:
        commands = [[programs["slurmctld"], "-i"]]
        commands += [[programs["slurmd"], "-N", f"n{number + 1}"] for number in range(spec.nodes)]
        starting = [
            subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(environment), start_new_session=True
            )
            for argv in commands
        ]
    deadline = time.monotonic() + _START
    for argv, starter in zip(commands, starting, strict=True):
        try:
            code = starter.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise ClusterError(_failure(directory, f"{' '.join(argv)} did not start in {_START:g} s")) from error
        if code != 0:
            raise ClusterError(_failure(directory, f"{' '.join(argv)} ended with code {code}"))
    # A daemon's return code is no proof: slurmctld that loses its port returns 0 and then dies.
    if not processes.until(lambda: _ready(directory, spec.nodes, environment), deadline - time.monotonic()):
        raise ClusterError(_failure(directory, f"not all of {spec.nodes} nodes became idle in {_START:g} s"))


def _ready(directory: ClusterDir, nodes: int, environment: Mapping[str, str]) -> bool:
    if _all_fatal_lines(directory):
        raise ClusterError(_failure(directory, "the cluster did not come up"))
    try:
        idle = run_once(["sinfo", "-h", "-N", "-p", "live", "-t", "idle", "-o", "%N"], 10, environment)
    except NotAnswering:
        return False
    return len(idle.split()) == nodes


def fatal_lines(log: str) -> list[str]:
    """Return a log's lines of what was fatal, each with the error before it.

    From 25.11 on that one has the reason's name.
    """
    before, found = "", []
    for line in log.splitlines():
        if "fatal" in line:
            found.append(f"{before.strip()} | {line.strip()}" if "error: " in before else line.strip())
        before = line
    return found


def _all_fatal_lines(directory: ClusterDir) -> list[str]:
    logs = sorted(directory.log.glob("*.log"))
    return [line for log in logs for line in fatal_lines(log.read_text(errors="replace"))]


def _failure(directory: ClusterDir, what: str) -> str:
    fatal = _all_fatal_lines(directory)
    return f"{what}: {fatal[0] if fatal else 'nothing fatal was logged'}; logs are in {directory.log}"


def _environment(directory: ClusterDir) -> dict[str, str]:
    """Return what daemons and commands get.

    It is nothing of the caller's that could reach jobs and be an option there, and the mark that they are found by.
    Logs have times without a zone, so that daemons and readers must have the same.
    """
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TZ", "USER", "LOGNAME") if name in os.environ}
    return {**kept, "PATH": SEARCH_PATH, "SLURM_CONF": str(directory.slurm_conf)}


def _is_up(directory: ClusterDir) -> bool:
    return any(
        "slurmctld" in processes.names([process]) for process in processes.cluster_processes(directory.slurm_conf)
    )


def _cancel_jobs(directory: ClusterDir) -> None:
    """Cancel every job and wait until they are gone, if Slurm answers."""
    environment = _environment(directory)

    def queue_is_empty() -> bool:
        jobs = run_once(["squeue", "-h", "-o", "%A"], 10, environment).split()
        if jobs:
            with suppress(
                ClusterError
            ):  # some of them have ended meanwhile, or it is slow: the queue says what is left
                run_once(["scancel", *jobs], 10, environment)
        return not jobs

    with suppress(ClusterError):  # the daemons and what their jobs have left are ended by process id
        processes.until(queue_is_empty, _KILL_WAIT, interval=0.2)


def _refuse_occupied(directory: ClusterDir) -> None:
    running = processes.names(processes.cluster_processes(directory.slurm_conf))
    if running:
        raise BadInput(
            f"a cluster runs in {directory.path} ({', '.join(sorted(running))}): "
            f"take it down with liver-slurm cluster down --dir {directory.path}, or give another --dir"
        )
    ours = {directory.record.name, directory.lock.name, *(folder.name for folder in directory.folders)}
    strange = sorted(entry.name for entry in directory.path.iterdir() if entry.name not in ours)
    if strange:
        raise BadInput(f"{directory.path} holds {strange[0]}, which is no cluster's: give an empty or new --dir")


def _make_folders(spec: ClusterSpec, directory: ClusterDir) -> None:
    for folder in directory.folders:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700 if folder in (directory.munge, directory.database) else 0o755)
    for number in range(spec.nodes):
        (directory.spool / f"n{number + 1}").mkdir()
    for number in range(spec.gpus_per_node):
        # Slurm wants numbered character devices; only the number matters, as CUDA_VISIBLE_DEVICES is made of it.
        (directory.run / f"gpu{number}").symlink_to("/dev/null")


def _existing(path: Path) -> ClusterDir:
    directory = ClusterDir(path)
    if not directory.record.is_file() and not directory.slurm_conf.is_file():
        raise BadInput(f"no cluster in {path}: bring one up with liver-slurm cluster up --dir {path}")
    return directory


@contextmanager
def _locked(directory: ClusterDir, create: bool = False) -> Iterator[None]:
    """Allow one ``up`` or ``down`` at a time in a directory; a directory with no cluster's files in it is not kept."""
    try:
        if create:
            directory.path.mkdir(parents=True, exist_ok=True)
        handle = directory.lock.open("w")
    except OSError as error:
        raise BadInput(f"--dir {directory.path}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"another cluster up or down is at work in {directory.path}: wait for it") from error
        try:
            yield
        finally:
            if not any(folder.exists() for folder in directory.folders):
                directory.lock.unlink()
                if not any(directory.path.iterdir()):
                    directory.path.rmdir()
