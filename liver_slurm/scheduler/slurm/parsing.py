"""From what Slurm's commands print to records: pure.

Texts and columns differ by version, so nothing here depends on more than the fields that were asked for by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo, StepInfo

SEPARATOR = "\x1f"
"""Ends each field of ``squeue -O`` and ``sinfo -O``: a comment may hold any printable character."""
WIDTH = 256
"""Letters that a field has, where :data:`WIDER` does not say more: Slurm cuts off what is beyond."""
WIDER = {"NodeList": 1024, "Features": 2048, "Gres": 1024, "GresUsed": 1024}
"""Fields that grow with a job's nodes, or with what a site says of its nodes."""

JOB_FIELDS = (
    "JobArrayID",
    "State",
    "Partition",
    "NodeList",
    "PreemptTime",
    "RestartCnt",
    "Reason",
    "TimeLimit",
    "EndTime",
    "Name",
    "Comment",
    "QOS",
    "JobID",
)
NODE_FIELDS = (
    "NodeList",
    "StateComplete",
    "CPUsState",
    "Gres",
    "GresUsed",
    "Memory",
    "AllocMem",
    "Features",
    "Reason",
    "Partition",
)

Expand = Callable[[str], tuple[str, ...]]
"""Turns ``n[1-3]`` into its host names."""

_SCALE = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_NOTHING = frozenset({"", "N/A", "n/a", "(null)", "NONE", "None", "Unknown"})


def format_option(fields: Iterable[str]) -> str:
    """Return the value of ``-O`` that :func:`split_fields` understands."""
    return ",".join(f"{name}:{WIDER.get(name, WIDTH)}{SEPARATOR}" for name in fields)


def split_fields(output: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the lines of ``-O`` output, each as field → text.

    A line with another number of fields is not one of ours.
    """
    rows = []
    for line in output.split("\n"):
        values = line.split(SEPARATOR)
        if len(values) == len(fields) + 1:
            rows.append(dict(zip(fields, (value.strip() for value in values[:-1]), strict=True)))
    return rows


def cut_node_lists(output: str) -> list[tuple[str, str]]:
    """Return number and node list of each job of ``squeue -O`` whose list fills its field: it may be cut off."""
    rows = split_fields(output, JOB_FIELDS)
    return [(row["JobID"], row["NodeList"]) for row in rows if len(row["NodeList"]) >= WIDER["NodeList"]]


def with_node_lists(output: str, shown: Mapping[str, str]) -> str:
    """Return ``squeue -O`` output with other node lists, by number of the job."""
    place = JOB_FIELDS.index("NodeList")
    lines = []
    for line in output.split("\n"):
        values = line.split(SEPARATOR)
        number = values[JOB_FIELDS.index("JobID")].strip() if len(values) == len(JOB_FIELDS) + 1 else ""
        if shown.get(number) and len(values[place].strip()) >= WIDER["NodeList"]:
            values[place] = shown[number]
        lines.append(SEPARATOR.join(values))
    return "\n".join(lines)


def parse_node_list(output: str, number: str) -> str:
    """Return the nodes of one job in ``scontrol -o show job``, which shows all of them; empty: it is not there."""
    for line in output.splitlines():
        row = dict(re.findall(r"(\w+)=(\S*)", line))
        if row.get("JobId") == number:
            return plain_text(row.get("NodeList", ""))
    return ""


def parse_jobs(output: str, expand: Expand) -> list[JobInfo]:
    """Parse ``squeue -O`` with :data:`JOB_FIELDS`, and SLURM_TIME_FORMAT=%s."""
    return [
        JobInfo(
            job_id=row["JobArrayID"],
            state=row["State"].split(" ")[0],
            partition=row["Partition"],
            nodes=expand(row["NodeList"]) if row["NodeList"] not in _NOTHING else (),
            preempt_time=_epoch(row["PreemptTime"]),
            restarts=_number(row["RestartCnt"]) or 0,
            reason=plain_text(row["Reason"]),
            time_limit=parse_duration(row["TimeLimit"]),
            end_time=_epoch(row["EndTime"]),
            name=row["Name"],
            comment=plain_text(row["Comment"]),
            qos=plain_text(row["QOS"]),
            number=_number(row["JobID"]) or 0,
        )
        for row in split_fields(output, JOB_FIELDS)
    ]


def parse_steps(output: str, expand: Expand) -> list[StepInfo]:
    """Parse ``scontrol -o show step`` with SLURM_TIME_FORMAT=%s."""
    steps = []
    for line in output.splitlines():
        row = dict(re.findall(r"(\w+)=(\S*)", line))
        if "StepId" not in row:
            continue
        nodes = row.get("NodeList", "")
        steps.append(
            StepInfo(
                step_id=row["StepId"],
                name=row.get("Name", ""),
                state=row.get("State", ""),
                nodes=expand(nodes) if nodes not in _NOTHING else (),
                tasks=_number(row.get("Tasks", "")) or 0,
                start_time=_epoch(row.get("StartTime", "")),
            )
        )
    return steps


def parse_nodes(output: str) -> list[NodeInfo]:
    """Parse ``sinfo -N -O`` with :data:`NODE_FIELDS`; there is a line for each partition of a node."""
    nodes: dict[str, NodeInfo] = {}
    for row in split_fields(output, NODE_FIELDS):
        name, partition = row["NodeList"], row["Partition"].rstrip("*")
        if name in nodes:
            nodes[name] = replace(nodes[name], partitions=nodes[name].partitions | {partition})
            continue
        _, idle, _, total = (int(part) for part in row["CPUsState"].split("/"))
        memory, allocated = _number(row["Memory"]) or 0, _number(row["AllocMem"]) or 0
        gpus = count_gpus(row["Gres"])
        nodes[name] = NodeInfo(
            name=name,
            state=node_state(row["StateComplete"]),
            cpus_idle=idle,
            cpus=total,
            gpus_idle=gpus - count_gpus(row["GresUsed"]),
            gpus=gpus,
            memory_idle=memory - allocated,
            memory=memory,
            features=_features(row["Features"]),
            has_more=len(row["Features"]) >= WIDER["Features"],
            reason=_reason(row["Reason"]),
            partitions=frozenset({partition}),
        )
    return list(nodes.values())


def _features(text: str) -> frozenset[str]:
    """Return the names in a list; of one that fills its field the last may be half a name, and is left out."""
    names = plain_text(text).split(",")
    return frozenset(names[:-1] if len(text) >= WIDER["Features"] else names) - {""}


def node_state(text: str) -> str:
    """Return a node's state in small letters, flags joined by ``+``; what a version writes as a sign at the end is left
    out, but for ``*``, which means that the node does not respond."""
    state = text.rstrip("*~#!%$@^-").lower()
    silent = "*" in text[len(state) :] and "not_responding" not in state
    return f"{state}+not_responding" if silent else state


def parse_partitions(output: str) -> list[PartitionInfo]:
    """Parse ``scontrol -o show partition``."""
    partitions = []
    for line in output.splitlines():
        row = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" not in row:
            continue
        partitions.append(
            PartitionInfo(
                name=row["PartitionName"],
                is_default=row.get("Default") == "YES",
                is_up=row.get("State", "UP") == "UP",
                nodes=plain_text(row.get("Nodes", "")),
                total_nodes=_number(row.get("TotalNodes", "")) or 0,
                max_time=parse_duration(row.get("MaxTime", "")),
                max_nodes=_number(row.get("MaxNodes", "")),
                priority_tier=_number(row.get("PriorityTier", "")) or 0,
                preempt_mode=row.get("PreemptMode", ""),
                grace=_number(row.get("GraceTime", "")) or 0,
            )
        )
    return partitions


def parse_reservations(output: str, expand: Expand) -> list[ReservationInfo]:
    """Parse ``scontrol -o show reservation`` with SLURM_TIME_FORMAT=%s."""
    reservations = []
    for line in output.splitlines():
        row = dict(re.findall(r"(\w+)=(\S*)", line))
        start, end = _epoch(row.get("StartTime", "")), _epoch(row.get("EndTime", ""))
        if "ReservationName" not in row or start is None or end is None:
            continue
        nodes = row.get("Nodes", "")
        reservations.append(
            ReservationInfo(
                name=row["ReservationName"],
                start_time=start,
                end_time=end,
                nodes=expand(nodes) if nodes not in _NOTHING else (),
                flags=frozenset(row.get("Flags", "").split(",")) - {""},
            )
        )
    return reservations


def parse_config(output: str) -> dict[str, str]:
    """Parse ``scontrol show config``: a line ``KEY = VALUE`` for each setting."""
    return dict(re.findall(r"(?m)^(\w+) += (.*?) *$", output))


def parse_qos_grace(output: str) -> dict[str, float]:
    """Parse ``sacctmgr -nP show qos format=Name,GraceTime``: seconds by name."""
    rows = (line.split("|") for line in output.splitlines() if line.count("|") == 1)
    return {name: parse_duration(grace) or 0.0 for name, grace in rows}


def count_gpus(gres: str) -> int:
    """Return the number of GPUs in a list of generic resources, e.g. 3 in ``gpu:a100:2(IDX:0-1),gpu:1,nic:4``.

    The count is the last number of an entry: a type may be anything, also a number or ``(null)``.
    """
    return sum(
        int(float(count) * _SCALE[scale])
        for count, scale in re.findall(
            r"(?:^|,)gpu(?::[^,]*?)?:(\d+)([KMG]?)(?:\([^)]*\))?(?=,gpu|,[a-z_]+:|,?$)", gres
        )
    )


def parse_duration(text: str) -> float | None:
    """Return Slurm's ``--time``: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, in seconds; None for no limit.

    Raises:
        ValueError: it is none of these.
    """
    if text.upper() in ("UNLIMITED", "INFINITE") or text in _NOTHING or text == "NOT_SET":
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a time as Slurm writes it, e.g. 90, 1:30:00 or 2-12:00:00")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        return float(days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0))
    if third is not None:
        return float((first or 0) * 3600 + (second or 0) * 60 + third)
    return float((first or 0) * 60 + (second or 0))


def parse_memory(text: str) -> int:
    """Return Slurm's ``--mem`` in mebibytes: a number, of mebibytes or with K, M, G or T.

    Raises:
        ValueError: it is not.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not an amount of memory as Slurm writes it, e.g. 4000M or 16G")
    scale = {"K": 1 / 1024, "": 1.0, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024.0}[match[2].upper()]
    return int(float(match[1]) * scale)


def _reason(value: str) -> str:
    return "" if value.lower() == "none" else plain_text(value)


def plain_text(value: str) -> str:
    """Without Slurm's words for nothing."""
    return "" if value in _NOTHING else value


def _number(value: str) -> int | None:
    return int(value) if value.isdigit() else None


def _epoch(value: str) -> float | None:
    return float(value) if value.isdigit() and int(value) > 0 else None
