"""The cases of a simulation: one trace and one set of costs, and a run of each kind on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from liver_slurm.config.schema import JobConfig
from liver_slurm.policy.engine import check
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.capacity import capacity
from liver_slurm.simulation.coarse import coarse
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.elastic_run import ElasticRun, run_id
from liver_slurm.simulation.event_file import event_file
from liver_slurm.simulation.setting import Setting
from liver_slurm.simulation.strategies import compare

POLICIES = ("greedy", "hysteresis", "cost-aware")
MODES = ("overlap", "pause")
KEYS = (
    *("policy", "mode", "ettr", "capacity_goodput", "tokens", "of_bound", "changes", "paused_s", "lost_s"),
    *("end", "seeds", "intervals"),
)
"""Of a case's document."""


@dataclass(frozen=True)
class Case:
    """What one run made of the trace."""

    policy: str
    """As ``standby.policy``, or the name of what the run is compared with."""
    mode: str
    """As ``stream.mode``, or how else it changes."""
    ettr: float
    """Time in steps that count, over all time."""
    capacity_goodput: float
    """Device-seconds in steps that count, over those on offer."""
    tokens: float
    """Of steps that count."""
    changes: float
    """Changes of the world; of several seeds the mean, as all figures."""
    paused_s: float
    """Time in which training stood still."""
    lost_s: float
    """Time in steps that do not count."""
    end: str = ""
    """Why the run ended before the trace; empty: it did not."""
    of_bound: float = 0.0
    """Tokens, as a share of those of perfect foresight."""
    seeds: int = 1
    """Of which the figures are means."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of each figure's mean, where there are several seeds."""
    sizes: tuple[tuple[float, int], ...] = ()
    """From which second of the trace on how many workers train, of the first seed; only of the product's own runs."""

    def to_document(self) -> dict[str, Any]:
        """Make its document; the keys are pinned."""
        return {key: getattr(self, key) for key in KEYS}


def make_case(
    name: tuple[str, str], account: Account, changes: int, setting: Setting, config: JobConfig, end: str = ""
) -> Case:
    """Make a case of an account; ``name``: policy and mode."""
    offered = setting.offered_device_s(config)
    return Case(
        policy=name[0],
        mode=name[1],
        ettr=account.productive_s / setting.trace.seconds,
        capacity_goodput=account.productive_device_s / offered if offered else 0.0,
        tokens=account.steps * config.train.global_batch_size * config.train.seq_length,
        changes=changes,
        paused_s=account.paused_s,
        lost_s=account.lost_s,
        end=end,
    )


def compared_cases(config: JobConfig, setting: Setting, costs: Costs) -> list[Case]:
    """Simulate what the product is compared with; the last one is the bound."""
    return [
        make_case((one.policy, one.mode), one.account, one.changes, setting, config, one.end)
        for one in compare(capacity(setting, config, costs))
    ]


def elastic_cases(
    config: JobConfig,
    setting: Setting,
    costs: Costs,
    policies: Sequence[str],
    modes: Sequence[str] = MODES,
    group: int = 1,
    log: Path | None = None,
) -> list[Case]:
    """Run the product with each policy, in each mode.

    Args:
        config: the job.
        setting: the trace, and how the cluster treats jobs.
        costs: what things take.
        policies: as ``standby.policy``.
        modes: as ``stream.mode``.
        group: workers for which one stands, see :mod:`liver_slurm.simulation.coarse`.
        log: folder in which each run gets a folder of its own, with its event log; None: no log is written.

    Raises:
        BadInput: there is no such policy, the job has no standby jobs, or a log cannot be written.
    """
    for policy in policies:
        check(policy, config)
    job, prices = coarse(config, costs, group) if group > 1 else (config, costs)
    cases = []
    for policy in policies:
        for mode in modes:
            with event_file(log, run_id(setting, policy, mode)) as heard:
                result = ElasticRun(job, setting, prices, policy, mode, heard).run()
            account = result.account.times(group)
            case = make_case((policy, mode), account, result.changes, setting, config, result.end)
            cases.append(replace(case, sizes=tuple((time, size * group) for time, size in result.sizes)))
    return cases
