"""Judge what probes saw on this machine and on nodes. Pure: facts to findings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from liver_slurm.config.fp8 import CAPABILITY, dotted
from liver_slurm.doctor.facts import Facts, Finding, Look, Report, TorchReport, wanted_partitions

CLOCK_LIMIT = 1.0
"""Seconds that clocks may differ: deadlines of notices are compared across nodes, and a grace time has few."""
MUNGE_TTL = 300.0
"""Seconds after which munge refuses a credential; clocks that differ by more are no cluster."""
LOW_SPACE = 20 << 30
"""Bytes: less than a checkpoint of a small model and its logs take."""
_OTHERS_WRITE = 0o022
PYTHON = ((3, 10), (3, 13))
"""From, and below."""
LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "f2fs", "apfs"})


def machine_findings(facts: Facts) -> Iterator[Finding]:
    """Judge nodes, clocks, the folder of runs, its locks, umask, ports, network interface, GPUs, packages and munge."""
    seen = [look for look in facts.looks if look.report is not None]
    yield from _looks(facts)
    yield from _clocks(facts, seen)
    yield from _directory(facts, seen)
    yield from _locks(facts, seen)
    yield from _umask(facts)
    yield from _ports(facts, seen)
    yield from _interface(facts, seen)
    yield from _gpus(facts, seen)
    yield from _packages(facts, seen)
    yield from _munge(facts, seen)


def _looks(facts: Facts) -> Iterator[Finding]:
    if facts.not_looked:
        if facts.slurm is not None:
            yield Finding(
                "nodes", "warn", f"not looked: {facts.not_looked}", "what follows is about this machine alone"
            )
        return
    for look in facts.looks:
        if look.report is not None:
            yield Finding("nodes", "ok", f"{look.host} of partition {look.partition} ran a job of ours")
        elif look.busy:
            advice = "try again with --wait SECONDS, or when the cluster is less busy"
            yield Finding("nodes", "warn", f"{look.partition}: not looked: {look.reason}", advice)
        else:
            advice = "live.python and live.setup must work on the nodes: install the package on a shared file system"
            yield Finding(
                "nodes", "fail", f"{look.partition}: a job there failed: {look.reason or 'no answer'}", advice
            )


def _clocks(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    if not seen:
        if facts.slurm is not None:
            yield Finding("clocks", "warn", "not looked: no node was seen", "`chronyc tracking` on the nodes")
        return
    known = [(look.host, look.clock_ahead, look.clock_uncertainty) for look in seen if look.clock_ahead is not None]
    off = [(host, ahead) for host, ahead, uncertainty in known if abs(ahead) - uncertainty > CLOCK_LIMIT]
    for host, ahead in off:
        text = f"{host} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
        severe = abs(ahead) > MUNGE_TTL
        yield Finding("clocks", "fail" if severe else "warn", text, "run chrony or ntpd on all nodes")
    if known and not off:
        most = max(abs(ahead) + uncertainty for _, ahead, uncertainty in known)
        yield Finding("clocks", "ok", f"within {most:.2g} s of this machine's on {_hosts(seen)}")


def _directory(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    here = facts.here.directory
    made = f"job.run_root {facts.config.job.run_root}"
    if here.path != facts.config.job.run_root:
        made += f" (to be made in {here.path})"
    if not here.writable or facts.token is None:
        yield Finding(
            "directory", "fail", f"{made} cannot be written to", "set job.run_root to a shared folder of yours"
        )
        return
    space = f"{here.free / 2**30:.0f} GiB free"
    if here.free < LOW_SPACE:
        yield Finding(
            "directory", "warn", f"{made}: only {space}", "checkpoints need room; choose another job.run_root"
        )
    for look in seen:
        assert look.report is not None
        there = look.report.directory
        if there.token != facts.token:
            text = f"{look.host} does not see what this machine writes in {here.path}"
            yield Finding("directory", "fail", text, "job.run_root must be on a file system that all nodes share")
        elif not there.writable:
            advice = "job.run_root must be writable on the nodes too"
            yield Finding("directory", "fail", f"{look.host} cannot write in {here.path}", advice)
    good = all(
        look.report is not None and look.report.directory.token == facts.token and look.report.directory.writable
        for look in seen
    )
    kind = here.file_system or "unknown file system"
    if seen and good:
        yield Finding("directory", "ok", f"{made}: {kind}, {space}, seen and writable on {_hosts(seen)}")
    elif not seen and here.file_system in LOCAL_FILE_SYSTEMS and facts.slurm is not None:
        text = f"{made}: {kind}, {space}; file systems of this kind are usually not shared"
        yield Finding("directory", "warn", text, "job.run_root must be on a file system that all nodes share")
    elif not seen:
        yield Finding("directory", "ok", f"{made}: {kind}, {space}, writable here")


def _locks(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    """Judge what became of locks on a file that this machine has locked: the journal is fenced by one."""
    kind = facts.here.directory.file_system or "the file system"
    tried = [("this machine", facts.here.directory.lock)]
    tried += [(look.host, look.report.directory.lock) for look in seen if look.report is not None]
    advice = "mount Lustre with -o flock (not localflock), NFS without nolock or local_lock"
    known = [(host, result) for host, result in tried if result]
    for host, result in known:
        if result == "granted":
            text = f"{host} was given a lock that this machine holds: two coordinators could act for one run"
            yield Finding("locks", "fail", text, advice)
        elif result != "refused":
            yield Finding("locks", "fail", f"{kind} has no locks on {host}: {result}", advice)
    if known and all(result == "refused" for _, result in known):
        hosts = ", ".join(host for host, _ in known)
        yield Finding("locks", "ok", f"a lock that is held is refused on {hosts}")


def _umask(facts: Facts) -> Iterator[Finding]:
    umask = facts.here.directory.umask
    if umask & _OTHERS_WRITE == _OTHERS_WRITE:
        yield Finding("umask", "ok", f"{umask:04o}: others cannot write what you make")
    else:
        text = f"{umask:04o} lets others write what you make; run directories are closed to them all the same"
        yield Finding("umask", "warn", text, "umask 022, so that job files and data are closed, too")


def _ports(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    if not seen:
        if facts.slurm is not None:
            yield Finding(
                "ports", "warn", "not looked: no node was seen", "nodes must reach each other on any TCP port"
            )
        return
    bad = False
    for look in seen:
        assert look.report is not None
        for other, why in look.report.unreached.items():
            if other == "this machine":
                continue  # no part of a run listens here
            bad = True
            advice = "open TCP ports from 1024 up between the nodes, or name another stream.interface"
            yield Finding("ports", "fail", f"{look.host} cannot connect to {other}: {why}", advice)
        if look.unreached_from_here:
            bad = True
            advice = "run status, resize and cancel on a node, or open its ports to this machine"
            text = f"this machine cannot connect to {look.host}: {look.unreached_from_here}"
            yield Finding("ports", "warn", text, advice)
    if not bad:
        pairs = sum(
            len([name for name in look.report.reached if name != "this machine"]) for look in seen if look.report
        )
        text = f"{pairs} connections between {_hosts(seen)}" if pairs else f"only one node was seen, {_hosts(seen)}"
        yield Finding("ports", "ok", f"{text}; reached from this machine")


def _interface(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    wanted = facts.config.stream.interface
    reports = [look.report for look in seen if look.report is not None]
    if wanted is None:
        several = [f"{one.host}: {', '.join(sorted(one.interfaces))}" for one in reports if len(one.interfaces) > 1]
        if several:
            text = f"gloo and NCCL choose among several ({several[0]})"
            yield Finding("interface", "warn", text, 'name the fastest as stream.interface, e.g. "ib0"')
        else:
            yield Finding("interface", "ok", "stream.interface is not given: gloo and NCCL choose")
        return
    for one in reports or [facts.here]:
        if wanted in one.interfaces:
            yield Finding("interface", "ok", f"{wanted} is {one.interfaces[wanted]} on {one.host}")
        else:
            known = ", ".join(sorted(one.interfaces)) or "none"
            text = f"{one.host} has no {wanted} with an IPv4 address; there are: {known}"
            # A login node need not have what the nodes have.
            severe = bool(reports) or facts.slurm is None
            yield Finding("interface", "fail" if severe else "warn", text, "change stream.interface")


def _gpus(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    config = facts.config
    asking = [look for look in seen if look.gpus_asked and look.report is not None]
    for look in asking:
        assert look.report is not None
        yield _node_gpus(look, look.report, config.train.fp8)
    if asking:
        return
    wanted = any(wanted_partitions(config.live, config.standby).values())
    if wanted and facts.slurm is not None:
        yield Finding("gpus", "warn", "not looked: no node with GPUs was seen", "see the lines on nodes above")
    elif facts.here.gpus or facts.here.gpu_error:
        # Workers run here only where there is no Slurm.
        yield _gpus_here(facts.here, config.train.fp8 and facts.slurm is None)
    elif wanted:
        text = "not looked: the job asks for GPUs, this machine has none, and Slurm cannot be asked"
        yield Finding("gpus", "warn", text, "see the line on Slurm above")
    elif facts.slurm is not None and any(node.gpus for nodes in facts.slurm.nodes.values() for node in nodes):
        text = "the partitions have GPUs, and the job asks for none"
        yield Finding("gpus", "ok", f"{text} (gpus_per_task = 1 does, in [[live.component]] and [standby])")
    else:
        yield Finding("gpus", "ok", "the job asks for none, and there are none here: workers run on CPUs")


def _node_gpus(look: Look, report: Report, fp8: bool) -> Finding:
    asked = f"{look.host}: {look.gpus_asked} GPU asked of Slurm"
    if report.gpus is None:
        text = f"{asked}, and there is no nvidia-smi"
        return Finding("gpus", "fail", text, "gres.conf promises what the node has not, or its driver is not installed")
    if report.gpu_error or not report.gpus:
        text = f"{asked}; nvidia-smi: {report.gpu_error or 'no GPU'}"
        return Finding("gpus", "fail", text, "look at the driver on that node")
    if report.torch is None or report.torch.error:
        why = report.torch.error if report.torch else "torch was not tried"
        return Finding("gpus", "fail", f"{asked}; torch: {why}", "install a torch that imports on the nodes")
    if len(report.torch.cards) < look.gpus_asked:
        cuda = report.torch.cuda
        text = f"{asked}; torch can use {len(report.torch.cards)}"
        advice = (
            "install a torch for CUDA" if cuda is None else f"torch is built for CUDA {cuda}: is the driver too old?"
        )
        return Finding("gpus", "fail", text, advice)
    if fp8 and (older := _without_fp8(look.host, report.torch)):
        return older
    return Finding("gpus", "ok", f"{asked}; nvidia-smi lists {report.gpus}, torch can use {len(report.torch.cards)}")


def _without_fp8(host: str, torch: TorchReport) -> Finding | None:
    """Judge cards that are to compute in FP8: workers would end in their warm-up on older ones."""
    for card in torch.cards:
        if card.capability < CAPABILITY:
            text = f"{host} has {card.name}, of compute capability {dotted(card.capability)}, and train.fp8 is true"
            advice = f"use cards of {dotted(CAPABILITY)} and above, such as H100, or train.fp8 = false"
            return Finding("gpus", "fail", text, advice)
    return None


def _gpus_here(here: Report, fp8: bool) -> Finding:
    if here.gpu_error:
        return Finding("gpus", "warn", f"nvidia-smi here: {here.gpu_error}", "look at the driver")
    devices = len(here.torch.cards) if here.torch else 0
    if devices < (here.gpus or 0):
        text = f"nvidia-smi lists {here.gpus} here, torch can use {devices}"
        return Finding("gpus", "warn", text, "install a torch for CUDA, or a newer driver")
    if fp8 and here.torch and (older := _without_fp8(here.host, here.torch)):
        return older
    return Finding("gpus", "ok", f"nvidia-smi lists {here.gpus} here, torch can use {devices}")


def _packages(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    reports = [facts.here, *(look.report for look in seen if look.report is not None)]
    for one in reports:
        yield from _package_problems(one, facts.requirements)
    for one in reports[1:]:
        different = [
            f"{name} {one.versions.get(name) or 'missing'}, here {facts.here.versions.get(name) or 'missing'}"
            for name in facts.requirements
            if one.versions.get(name) != facts.here.versions.get(name)
        ]
        if one.python != facts.here.python:
            different.insert(0, f"Python {one.python}, here {facts.here.python}")
        if different:
            advice = "all processes of a run need the same: one environment on a shared file system"
            yield Finding("packages", "fail", f"{one.host} has {'; '.join(different)}", advice)
    versions = ", ".join(f"{name} {facts.here.versions[name]}" for name in ("torch", "megatron-core", "submitit"))
    where = f"here and on {_hosts(seen)}" if seen else "here"
    yield Finding("packages", "ok", f"Python {facts.here.python}, {versions} {where}")


def _package_problems(report: Report, requirements: Mapping[str, str]) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    first, last = PYTHON
    version = tuple(int(part) for part in re.findall(r"\d+", report.python)[:2])
    if not first <= version < last:
        text = f"Python {report.python} on {report.host}"
        yield Finding("packages", "fail", text, f"Python {first[0]}.{first[1]} to {last[0]}.{last[1] - 1} is needed")
    for name, wanted in requirements.items():
        installed = report.versions.get(name)
        if installed is None:
            yield Finding(
                "packages", "fail", f"{name} is not installed on {report.host}", f"pip install '{name}{wanted}'"
            )
        elif not SpecifierSet(wanted).contains(installed, prereleases=True):
            text = f"{name} {installed} on {report.host}; {wanted} is needed"
            yield Finding("packages", "fail", text, f"pip install '{name}{wanted}'")
    if report.torch is not None and report.torch.error:
        text = f"torch cannot be imported on {report.host}: {report.torch.error}"
        yield Finding("packages", "fail", text, "install a torch that fits this machine")


def _munge(facts: Facts, seen: Sequence[Look]) -> Iterator[Finding]:
    if facts.munge_error and not facts.slurm_missing:
        advice = "is munged running, and does it have the cluster's key? `systemctl status munge`"
        # Where slurmctld answers, munge works, by another socket than the one that was tried.
        yield Finding("munge", "warn" if facts.slurm is not None else "fail", f"here: {facts.munge_error}", advice)
    elif facts.slurm is not None:
        kind = facts.slurm.config.get("AuthType", "auth/munge")
        where = f", and {_hosts(seen)} took our jobs" if seen else ""
        yield Finding("munge", "ok", f"slurmctld took our credential ({kind}){where}")


def _hosts(seen: Sequence[Look]) -> str:
    return ", ".join(dict.fromkeys(look.host for look in seen))
