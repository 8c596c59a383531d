"""What others chose on a trace that they published, followed with the costs of this simulation. Pure.

Parcae's files (Duan et al., NSDI 2024) have three choices for each minute, as replicas × stages:

``parcae``           ``liveput_predict_strategy``, its own: proactive, by what it predicts of capacity (with ARIMA)
``parcae-ideal``     ``liveput_truth_strategy``, the same with perfect foresight of capacity
``parcae-reactive``  ``throughput_opt_strategy``, the fastest for the nodes of the minute, whatever comes next

A world is the choice of the minute as soon as its nodes are ready. Until then, or where a notice comes before the
choice that makes room for it, it is that of the minute in which the node goes, or else the fastest choice that fits.
"""

from __future__ import annotations

from bisect import bisect_right

from liver_slurm.config.layouts import impossible
from liver_slurm.parallel.layout import Layout
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.capacity import Capacity, News
from liver_slurm.simulation.rule_run import Outcome, RuleRun, Rules
from liver_slurm.simulation.trace import Published

MODE = "migration"


def follow(published: Published, capacity: Capacity) -> Outcome:
    """Train in what was chosen at each moment; a change costs what it costs data parallelism that grows and shrinks."""
    costs, config, seconds = capacity.costs, capacity.config, capacity.setting.trace.seconds
    choices = [(time, Layout(tp=1, pp=stages, dp=replicas)) for time, replicas, stages in published.choices]
    for layout in dict.fromkeys(layout for _, layout in choices):
        if reason := impossible(layout, config.model, config.data, config.train):
            account = Account(paused_s=seconds)
            return Outcome(published.name, MODE, account, 0, end=f"it chose {layout}, and {reason}")
    rules = Rules(
        announced_s=costs.exposed_pause_s,
        sudden_s=costs.detect_s + costs.recover_s + costs.exposed_pause_s,
        needs_notice=0.0,
        grows=True,
        loses=0.5,
        stall_share=costs.stall_s / costs.save_every_s,
    )
    run = _Follower(capacity, rules, choices)
    moments = [News(time, "choice", "") for time, _ in choices if time < seconds]
    news = sorted([*capacity.news(costs.join_s + costs.prepare_s), *moments], key=lambda one: one.time)
    run.follow(news)
    return Outcome(published.name, MODE, run.account, run.changes)


class _Follower(RuleRun):
    def __init__(self, capacity: Capacity, rules: Rules, choices: list[tuple[float, Layout]]) -> None:
        self._choices = choices
        self._times = [time for time, _ in choices]
        super().__init__(capacity, capacity.only([layout for _, layout in choices]), rules)

    def _best(self) -> Layout | None:
        workers = self._capacity.workers(len(self._there))
        for time in (self._now, self._now + self._capacity.setting.notice):
            layout = self._choices[max(0, bisect_right(self._times, time) - 1)][1]
            if layout.size <= workers:
                return layout
        return self._speeds.best(workers)

    def _is_faster(self, layout: Layout) -> bool:
        return layout != self._layout  # the choice is followed, also where it is slower
