"""A run that follows rules, from one piece of news to the next: other ways to train than the product's. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from liver_slurm.parallel.layout import Layout
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.capacity import Capacity, News, Speeds


@dataclass(frozen=True)
class Outcome:
    """What one way to train made of a trace."""

    policy: str
    mode: str
    account: Account
    changes: int
    end: str = ""
    """Why it made nothing of it; empty: it did."""


@dataclass(frozen=True)
class Rules:
    """How one way to train changes its world. Times are seconds."""

    announced_s: float
    """Training stands for a change that it hears of in time."""
    sudden_s: float
    """Training stands for the loss of a node."""
    needs_notice: float
    """A notice that is shorter is of no use."""
    grows: bool
    """Changes also for nodes that come, not only where it must."""
    save_every: float = math.inf
    """Of training, between two checkpoints on the way; not less than ``write_s``."""
    stall_s: float = 0.0
    """Training stands for each of them; the rest is written in the background."""
    write_s: float = 0.0
    """From the begin of one until it can be gone back to."""
    loses: float = math.inf
    """A sudden loss costs what was trained since the last checkpoint that is written, but at most so many steps."""
    stall_share: float = 0.0
    """Checkpoints in the background make steps longer by this share."""


class RuleRun:
    """One way to train, from one piece of news to the next: it trains, or stands until a moment that is known."""

    def __init__(self, capacity: Capacity, speeds: Speeds, rules: Rules) -> None:
        self._capacity, self._speeds, self._rules = capacity, speeds, rules
        self.account, self.changes = Account(), 0
        self._there: dict[str, None] = {}
        """Nodes that can be used, in the order in which they came."""
        self._used: frozenset[str] = frozenset()
        self._now = self._up_at = 0.0
        """How far time is accounted for; when training goes on."""
        self._layout = self._best()
        self._step = 0.0
        self._since_save = self._saving = 0.0
        """Seconds trained since the last checkpoint's begin; seconds that training has stood for the one under way."""
        self._saved = False
        """A checkpoint was begun since the last change."""

    def follow(self, news: Sequence[News]) -> None:
        """Go through the whole trace."""
        for one, after in zip_longest(news, news[1:]):
            self._pass_until(one.time)
            self._hear(one)
            if one.kind in ("choice", "ready") and (after is None or (after.time, after.kind) != (one.time, one.kind)):
                self._grow()  # into all that came at once
        self._pass_until(self._capacity.setting.trace.seconds)

    def _hear(self, one: News) -> None:
        rules = self._rules
        if one.kind == "ready":
            self._there[one.node] = None
        elif one.kind == "notice" and self._capacity.setting.notice >= rules.needs_notice:
            self._there.pop(one.node, None)
            if one.node in self._used:
                self._change(rules.announced_s)
        elif one.kind == "gone":
            self._there.pop(one.node, None)
            if one.node in self._used:
                self._lose()
                self._change(rules.sudden_s)

    def _best(self) -> Layout | None:
        """Return what it wants to train in now, of what is there."""
        return self._speeds.best(self._capacity.workers(len(self._there)))

    def _grow(self) -> None:
        best = self._best()
        if self._rules.grows and self._now >= self._up_at and best is not None and self._is_faster(best):
            self._change(self._rules.announced_s)

    def _is_faster(self, layout: Layout) -> bool:
        return self._layout is None or self._speeds.step_s(layout) < self._speeds.step_s(self._layout)

    def _change(self, seconds: float) -> None:
        """Stand for so long, and train in the best world of what is there then."""
        self._layout = self._best()
        size = self._layout.size if self._layout is not None else 0
        self._used = frozenset(list(self._there)[: self._nodes_of(size)])
        self._up_at = self._now + seconds
        self._since_save = self._saving = 0.0  # a change is announced by a checkpoint, or goes back to one
        self._saved = False
        self.changes += 1

    def _nodes_of(self, size: int) -> int:
        """Count the nodes that a world of ``size`` workers has beside the guaranteed ones."""
        each = max(1, self._capacity.workers(1) - self._capacity.guaranteed)
        return max(0, -(-(size - self._capacity.guaranteed) // each))

    def _lose(self) -> None:
        """Lose what was trained since the last checkpoint that is written, or a part of a step."""
        if self._layout is None or self._now < self._up_at:
            return
        rules, step_s = self._rules, self._speeds.step_s(self._layout)
        is_written = not self._saved or rules.stall_s + self._since_save >= rules.write_s
        since = self._since_save if is_written else self._since_save + rules.save_every
        lost = min(since, rules.loses * step_s)
        self._step -= lost / step_s
        self.account.back_to(self._step)

    def _pass_until(self, time: float) -> None:
        """Train and save, or stand, until ``time``."""
        size = self._layout.size if self._layout is not None else 0
        if self._now < self._up_at:
            until = min(time, self._up_at)
            self.account.stood(until - self._now, size)
            self._now = until
            if self._now >= self._up_at:
                self._grow()  # what has come meanwhile
        if self._now >= time:
            return
        if self._now < self._up_at:
            self._pass_until(time)
            return
        if self._layout is None:
            self.account.stood(time - self._now, 0)
        else:
            self._train(time - self._now, self._layout)
        self._now = time

    def _train(self, seconds: float, layout: Layout) -> None:
        """Train for so many seconds, with checkpoints between."""
        rules = self._rules
        cycle = rules.save_every + rules.stall_s
        position = self._since_save + self._saving
        cycles = math.floor((position + seconds) / cycle) if cycle < math.inf else 0
        rest = position + seconds - cycles * cycle if cycles else position + seconds
        trained = cycles * rules.save_every + min(rest, rules.save_every) if cycles else min(rest, rules.save_every)
        trained -= self._since_save
        self._since_save = min(rest, rules.save_every)
        self._saving = rest - self._since_save
        self._saved = self._saved or cycles > 0
        step_s, useful = self._speeds.step_s(layout), trained / (1.0 + rules.stall_share)
        self.account.trained(self._step, self._step + useful / step_s, step_s, layout.size)
        self._step += useful / step_s
        self.account.stood(seconds - useful, layout.size)
