"""A toy partition, minute by minute: nodes are offered, taken or left, and taken away again, at known rates and costs.

It is where rules can be judged by the truth: by what the run makes of four hours if the rule decides on every offer.
Its nodes have no memory of their age, and its model does not know the product's reconfigurations; the simulator
has both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from liver_slurm.advisor.arrays import Array, Mask
from liver_slurm.advisor.learners import sigmoid
from liver_slurm.advisor.rules import Rule
from liver_slurm.advisor.table import DecisionTable

HORIZON = 240
WINDOWS = (10, 60, HORIZON)
"""Minutes after a decision at which its outcome is looked at."""
_OFFERS, _REST = 0.08, 10
"""Chance of an offer in a minute, and minutes for which one that was left does not come again."""
LOGGED = 0.7
"""Chance to take in the logs."""


@dataclass(frozen=True)
class Regime:
    """What it costs to take nodes and to lose them."""

    hazard: float
    """Chance of a loss in a minute, where load and hour are usual."""
    lost: float
    """Minutes that are lost with nodes whose notice could not be served in time."""
    change: float
    """Minutes that a change of layout costs a run of usual size."""
    unserved: float
    """Log-odds of such a notice, added to those of a run's size and the partition's grace."""


REGIMES = {
    "free": Regime(0.02, 0.0, 0.02, 0.0),
    "calm": Regime(0.02, 25.0, 0.15, 0.0),
    "volatile": Regime(0.05, 35.0, 0.3, 1.0),
}


@dataclass(frozen=True)
class Runs:
    """Runs at their first offer: [n] each."""

    size: Array
    pressure: Array
    hour: Array
    grace: Array
    noise: Array
    """What the lives of nodes that were seen are off by, a factor."""

    def hazard(self, regime: Regime, minute: int) -> Array:
        """Return the chance of a loss in a minute."""
        return np.asarray(regime.hazard * np.exp(0.8 * self.day(minute) + 0.7 * self.pressure))

    def day(self, minute: int) -> Array:
        """Return 1 at two in the afternoon and -1 at two in the night."""
        return np.asarray(np.cos(2 * np.pi * (self.hour + minute / 60.0 - 14.0) / 24.0))

    def covariates(self, regime: Regime, minute: int = 0) -> Array:
        """Return what a policy may know: size, pressure, day, grace, log of the lives seen."""
        lives = np.log(self.noise / self.hazard(regime, minute))
        return np.column_stack([self.size, self.pressure, self.day(minute), self.grace, lives])


def interactions(x: Array) -> Array:
    """Return the covariates with those products that matter here: [n, 12]; earlier outcomes stay as they are."""
    size, pressure, day, grace = x[:, 0], x[:, 1], x[:, 2], x[:, 3]
    products = [size * pressure, size * day, size * grace, pressure * day, pressure * grace, size**2, pressure**2]
    return np.column_stack([x, *products])


def home(n: int, random: np.random.Generator) -> Runs:
    """Draw runs of the partition that has outcomes."""
    return _runs(n, random, size=0.0, pressure=-0.3, hour=random.uniform(0.0, 24.0, n), grace=0.6)


def away(n: int, random: np.random.Generator) -> Runs:
    """Draw runs of the partition of which covariates are known: larger models, more load, midday, less grace."""
    return _runs(n, random, size=0.7, pressure=0.4, hour=random.normal(13.0, 4.0, n), grace=0.4)


def log(n: int, regime: Regime, random: np.random.Generator) -> DecisionTable:
    """Draw logged decisions, one a run, with outcomes in minutes; runs drop out by what they have gained."""
    runs = home(n, random)
    actions = random.random(n) < LOGGED
    gains = simulate(runs, regime, lambda x: np.full(len(x), LOGGED), random, first=actions)
    day = runs.day(0)
    scores = np.column_stack(
        [
            sigmoid(3.0 - 0.3 * runs.size),
            sigmoid(1.2 + 0.25 * gains[:, 0] - 0.2 * runs.size),
            sigmoid(0.6 + 0.05 * (gains[:, 1] - 10.0) + 0.2 * day),
        ]
    )
    seen = np.cumprod(random.random((n, 3)) < scores, axis=1).astype(bool)
    chance = np.tile([1.0 - LOGGED, LOGGED], (n, 1))
    table = DecisionTable(runs.covariates(regime), actions.astype(np.int64), gains, seen)
    return replace(table, logged=chance)


def goodput(rule: Rule, regime: Regime, runs: Runs, seed: int = 0) -> float:
    """Return what runs make of the horizon if a rule decides on every offer; 1.0: as much as without any offer."""
    gains = simulate(runs, regime, rule, np.random.default_rng(seed))
    return 1.0 + float(gains[:, -1].mean()) / HORIZON


def simulate(runs: Runs, regime: Regime, rule: Rule, random: np.random.Generator, first: Mask | None = None) -> Array:
    """Return the minutes gained until each window's end, [n, 3], with a rule that decides on every offer.

    Args:
        runs: What is simulated.
        regime: At which costs.
        rule: Its chances to take.
        random: Where chance is from; it is drawn alike whatever the rule decides, so rules meet the same luck.
        first: What is done with the first offer, in place of the rule.
    """
    n = len(runs.size)
    gain, up, rest, down = np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n), np.zeros(n)
    a_minute = 0.8 * sigmoid(1.2 - 0.5 * runs.size)
    change = regime.change * np.exp(0.5 * runs.size)
    unserved = sigmoid(-2.2 + regime.unserved + 1.1 * runs.size - 1.8 * runs.grace)
    found = []
    for minute in range(HORIZON):
        luck = random.random((4, n))
        gain -= down > 0
        offered = ~up & (rest <= 0) & (down <= 0) & ((luck[0] < _OFFERS) | (minute == 0))
        chance = rule(runs.covariates(regime, minute))
        takes = first if first is not None and minute == 0 else luck[1] < chance
        taken = offered & takes
        rest = np.where(offered & ~takes, _REST, rest - 1)
        gain -= np.where(taken, change, 0.0)
        up |= taken
        gain += np.where(up, a_minute, 0.0)
        lost = up & (luck[2] < -np.expm1(-runs.hazard(regime, minute)))
        gain -= np.where(lost, change, 0.0)
        up &= ~lost
        down = np.where(lost & (luck[3] < unserved), regime.lost, down - 1)
        if minute + 1 in WINDOWS:
            found.append(gain.copy())
    return np.column_stack(found)


def _runs(n: int, random: np.random.Generator, *, size: float, pressure: float, hour: Array, grace: float) -> Runs:
    return Runs(
        size=random.normal(size, 1.0, n),
        pressure=random.normal(pressure, 0.8, n),
        hour=hour,
        grace=(random.random(n) < grace).astype(np.float64),
        noise=random.lognormal(0.0, 0.5, n),
    )
