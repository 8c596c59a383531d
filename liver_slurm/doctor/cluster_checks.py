"""Judge what Slurm says about the cluster. Pure: facts to findings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from liver_slurm.devcluster.conf import user_signal_setting
from liver_slurm.doctor.facts import Facts, Finding, SlurmFacts, wanted_partitions
from liver_slurm.scheduler.slurm.headroom import STARTABLE
from liver_slurm.scheduler.slurm.notices import kill_wait, preempts_by_qos
from liver_slurm.scheduler.slurm.records import PartitionInfo

OLDEST = (22, 5)
TRIED = ((22, 5), (24, 11), (25, 11), (26, 5))
"""Versions that the product was run on."""
SHORT_GRACE = 10.0
"""Seconds in which a shrink is likely, but not sure, to be done."""

_USABLE = STARTABLE | {"allocated", "completing"}


def cluster_findings(facts: Facts) -> Iterator[Finding]:
    """Judge Slurm's version, client, partitions and preemption."""
    slurm = facts.slurm
    if slurm is None:
        advice = "without a cluster there are `liver-slurm run`, and `liver-slurm cluster up` for one on this machine"
        yield Finding("slurm", "warn" if facts.slurm_missing else "fail", facts.slurm_error, advice)
        return
    yield _version(slurm)
    yield _client(facts, slurm)
    yield from _partitions(facts, slurm)
    if facts.config.standby.partitions:
        yield from _preemption(facts, slurm)
    else:
        yield Finding("preemption", "ok", "no standby.partitions are given: the run never grows into reclaimable nodes")


def _text(version: Sequence[int]) -> str:
    return ".".join(f"{part:02d}" if place == 1 else str(part) for place, part in enumerate(version))


def _version(slurm: SlurmFacts) -> Finding:
    version, major = _text(slurm.version), slurm.version[:2]
    if major < OLDEST:
        return Finding("slurm", "fail", f"Slurm {version} is too old", f"at least {_text(OLDEST)} is needed")
    if major not in TRIED:
        tried = ", ".join(map(_text, TRIED))
        return Finding(
            "slurm", "warn", f"Slurm {version}: liver-slurm was tried on {tried}", "try configs/gpt-tiny.toml"
        )
    return Finding("slurm", "ok", f"Slurm {version} answers")


def _client(facts: Facts, slurm: SlurmFacts) -> Finding:
    if facts.pyslurm is None:
        return Finding("client", "ok", f"{slurm.client}; pyslurm is not installed, and not needed")
    if facts.pyslurm.split(".")[:2] != [str(part) for part in slurm.version[:2]]:
        text = f"{slurm.client}; pyslurm {facts.pyslurm} is for another version than Slurm {_text(slurm.version)}"
        return Finding("client", "warn", text, "install the pyslurm of your Slurm's version, or uninstall it")
    return Finding("client", "ok", f"{slurm.client}; pyslurm {facts.pyslurm} matches")


def _partitions(facts: Facts, slurm: SlurmFacts) -> Iterator[Finding]:
    for problem in slurm.problems:
        yield Finding(
            "partitions", "fail", problem, "change the job file or the site file; `sinfo` shows the partitions"
        )
    known = {one.name: one for one in slurm.partitions}
    for name in wanted_partitions(facts.config.live, facts.config.standby, slurm.partitions):
        if name not in known:
            continue  # one of the problems
        yield _partition(known[name], [node.state for node in slurm.nodes.get(name, ())])


def _partition(partition: PartitionInfo, states: Sequence[str]) -> Finding:
    usable = sum(state in _USABLE for state in states)
    named = f"{partition.name}{' (the default)' if partition.is_default else ''}"
    if not partition.is_up:
        return Finding("partitions", "fail", f"{named} is not up", "wait until it is, or name another one")
    if usable == 0:
        return Finding(
            "partitions", "warn", f"{named}: none of its {len(states)} nodes can be used", "`sinfo -R` says why"
        )
    idle = sum(state == "idle" for state in states)
    return Finding("partitions", "ok", f"{named} is up: {usable} of {len(states)} nodes can be used, {idle} are idle")


def _preemption(facts: Facts, slurm: SlurmFacts) -> Iterator[Finding]:
    kind, config = slurm.config.get("PreemptType", ""), slurm.config
    if kind in ("", "preempt/none", "(null)"):
        yield Finding(
            "preemption",
            "warn",
            "PreemptType is preempt/none: Slurm takes no node back from a standby job",
            "standby jobs keep others waiting until standby.time; admins: PreemptType=preempt/partition_prio",
        )
        return
    if preempts_by_qos(config):
        qos = facts.config.standby.qos
        if qos is None:
            advice = (
                "name the QOS that others preempt as standby.qos; `sacctmgr show qos format=name,preempt,gracetime`"
            )
            yield Finding(
                "preemption", "warn", "the QOS decides what is preempted, and standby.qos is not given", advice
            )
        else:
            yield Finding("preemption", "ok", f"by QOS: standby jobs have {qos}")
    else:
        yield from _tiers(facts, slurm)
    known = {one.name: one for one in slurm.partitions}
    for name in facts.config.standby.partitions:
        if name in known:
            yield from _standby_partition(facts, slurm, known[name])
    yield _user_signal(facts, slurm)


def _tiers(facts: Facts, slurm: SlurmFacts) -> Iterator[Finding]:
    """Judge preemption by PriorityTier: others preempt standbys, and nothing preempts the guaranteed job."""
    known = {one.name: one for one in slurm.partitions}
    reclaimable = [known[name] for name in facts.config.standby.partitions if name in known]
    for one in reclaimable:
        above = sorted(other.name for other in slurm.partitions if other.priority_tier > one.priority_tier)
        if above:
            yield Finding("preemption", "ok", f"{one.name} (tier {one.priority_tier}) gives way to {', '.join(above)}")
        else:
            text = f"{one.name} has the highest PriorityTier, {one.priority_tier}: no job preempts a standby there"
            yield Finding("preemption", "warn", text, "admins: a PriorityTier below that of the other partitions")
    standby = set(facts.config.standby.partitions)
    for name in wanted_partitions(facts.config.live, facts.config.standby, slurm.partitions):
        if name in standby or name not in known:
            continue
        live = known[name]
        above = sorted(other.name for other in slurm.partitions if other.priority_tier > live.priority_tier)
        if above and live.preempt_mode.upper() not in ("OFF", ""):
            text = f"jobs in {', '.join(above)} preempt the guaranteed job in {name} (PreemptMode {live.preempt_mode})"
            yield Finding("preemption", "warn", text, "choose a partition for [live] that is never preempted")


def _standby_partition(facts: Facts, slurm: SlurmFacts, partition: PartitionInfo) -> Iterator[Finding]:
    mode = (partition.preempt_mode or slurm.config.get("PreemptMode", "")).upper()
    name = partition.name
    if mode == "OFF":
        text = f"{name} has PreemptMode OFF: Slurm takes no node back from a standby job"
        yield Finding("preemption", "warn", text, "name a reclaimable partition; admins: PreemptMode=CANCEL or REQUEUE")
        return
    if "SUSPEND" in mode:
        text = f"{name} has PreemptMode {mode}: a standby is stopped where it is, and keeps its memory"
        yield Finding("preemption", "warn", text, "admins: PreemptMode=CANCEL or REQUEUE frees the node wholly")
    yield _grace(facts.config.standby.grace, kill_wait(slurm.config), partition, mode)


def _grace(assumed: float | None, waits: float | None, partition: PartitionInfo, mode: str) -> Finding:
    text = f"{partition.name}: PreemptMode {mode}, GraceTime {partition.grace} s, KillWait {waits or 0:g} s"
    left = float(partition.grace) or waits or 0.0
    if assumed is not None and assumed > left:
        advice = f"standby.grace = {left:g}, or leave it out: Slurm's settings are asked"
        return Finding("grace", "warn", f"{text}; standby.grace says {assumed:g} s, which is more", advice)
    if left < SHORT_GRACE:
        advice = (
            f"admins: GraceTime={SHORT_GRACE:g} or more; a shrink that is not done by then loses the worker unplanned"
        )
        return Finding("grace", "warn", f"{text}: {left:g} s for a shrink", advice)
    if partition.grace == 0:
        return Finding("grace", "ok", f"{text}: only KillWait is left for a shrink")
    return Finding("grace", "ok", text)


def _user_signal(facts: Facts, slurm: SlurmFacts) -> Finding:
    key, value = user_signal_setting(slurm.version[:2])
    signal = facts.config.standby.signal
    if value in re.split(r"[,\s]+", slurm.config.get(key, "")):
        return Finding("signal", "ok", f"{key} has {value}: preemption sends a job its own --signal")
    if signal is None:
        return Finding("signal", "ok", "preemption sends SIGTERM, which standbys take as a notice")
    text = (
        f"standby.signal = {signal!r} comes before the time limit only: preemption sends SIGTERM, which is a notice too"
    )
    return Finding("signal", "ok", f"{text} ({key}={value} would change that)")
