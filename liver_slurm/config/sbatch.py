"""Further options of sbatch in a job file: what there is no key of its own for. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from liver_slurm.config.problem import Problem, shown
from liver_slurm.config.schema import LiveSection, StandbySection

_SAID = {
    "partition": "partition",
    "time": "time",
    "account": "account",
    "qos": "qos",
    "nodes": "nodes",
    "ntasks": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "mem",
    "constraint": "constraint",
    "exclude": "exclude",
    "gres": "gpus_per_task and gpu_type",
    "gpus": "gpus_per_task",
    "gpus-per-node": "gpus_per_task",
    "gpus-per-task": "gpus_per_task",
    "requeue": "live.requeue",
    "no-requeue": "live.requeue",
    "signal": "standby.signal",
    "job-name": "job.name",
}
"""Options that keys say, and the keys."""
_OURS = frozenset(
    {"comment", "output", "error", "input", "open-mode", "export", "no-kill", "mincpus", "wrap", "array", "hetjob"}
    | {"parsable", "test-only", "wait", "chdir", "mem-per-cpu", "mem-per-gpu", "export-file", "quiet", "usage", "help"}
)
"""Options that the product needs for itself, and those that would make another kind of submission."""
_NOT_OF_STANDBYS = {"begin": "jobs in the queue are told when they may start, and would not keep to it"}
"""Options that hold for the guaranteed job alone, and why."""
_FORM = re.compile(r"--([a-z][a-z-]*)(?:=(.+))?")


def options(texts: Sequence[str]) -> list[tuple[str, str | None]]:
    """Name and value of each option; None: it is a flag."""
    found = (_FORM.fullmatch(text) for text in texts)
    return [(match[1], match[2]) for match in found if match is not None]


def problems(key: str, texts: Sequence[str]) -> Iterator[Problem]:
    """Find what ``key`` may not say."""
    for index, text in enumerate(texts):
        match, place = _FORM.fullmatch(text), f"{key}.{index}"
        if match is None:
            yield Problem(place, f"{shown(text)} is not allowed; allowed: --NAME=VALUE or --NAME, in full")
        elif match[1] in _SAID:
            yield Problem(place, f"{shown(text)} is not allowed: {_SAID[match[1]]} says that")
        elif match[1] in _OURS:
            yield Problem(place, f"{shown(text)} is not allowed: the run needs --{match[1]} for itself")
        elif key != "live.sbatch" and match[1] in _NOT_OF_STANDBYS:
            yield Problem(place, f"{shown(text)} is not allowed: {_NOT_OF_STANDBYS[match[1]]}")


def line_breaks(live: LiveSection, standby: StandbySection) -> Iterator[Problem]:
    """Find texts for Slurm that would be more than one line of a batch script's header."""
    sections: list[tuple[str, object]] = [("live", live), ("standby", standby)]
    sections += [(f"live.component.{index}", one) for index, one in enumerate(live.component)]
    sections += [(f"standby.unit.{index}", one) for index, one in enumerate(standby.unit)]
    for section, values in sections:
        for name, value in vars(values).items():
            texts = value if isinstance(value, tuple) and name != "setup" else (value,)
            if any(isinstance(text, str) and len(text.splitlines()) > 1 for text in texts):
                yield Problem(f"{section}.{name}", f"{shown(value)} has a line break in it; allowed: one line")
