"""A fitted model: a rule, what it was learned from, and the verdict, in one JSON file. Pure Python.

A coordinator reads it and asks it, so nothing is imported here that takes time: applying a rule is a few hundred
multiplications at most. It is learned in :mod:`liver_slurm.advisor.fitting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import msgspec

from liver_slurm.base.errors import BadInput

VERSION = 1
FAR = 3.0
"""A feature that is further than so many standard deviations outside of what was seen makes an offer unknown."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One number that the rule sees: a feature, or whether it is missing."""

    feature: str
    missing: bool = False
    """1 where the feature is not known, 0 elsewhere."""
    fill: float = 0.0
    """What stands for a feature that is not known: its mean."""
    low: float = 0.0
    high: float = 0.0
    """Range of what was seen."""
    sd: float = 1.0

    def value(self, features: Mapping[str, float | None]) -> float:
        """Return the number for one offer."""
        known = features.get(self.feature)
        if self.missing:
            return float(known is None)
        return self.fill if known is None else known

    def is_far(self, value: float) -> bool:
        """Return whether a value is unlike everything that was seen."""
        return not self.low - FAR * self.sd <= value <= self.high + FAR * self.sd


class Constant(msgspec.Struct, frozen=True, kw_only=True, tag="constant"):
    """Always the same."""

    take: bool


class Plane(msgspec.Struct, frozen=True, kw_only=True, tag="plane"):
    """Take where a sum is positive: of the columns, in standard deviations, and of what they exceed each knot by."""

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    knots: tuple[float, ...]
    """None: the sum is linear."""
    intercept: float
    weights: tuple[tuple[float, ...], ...]
    """Of each column: its own weight, then one for each knot."""

    def parts(self, values: tuple[float, ...]) -> list[float]:
        """Return what each column adds to the sum."""
        found = []
        for value, centre, scale, weights in zip(values, self.centre, self.scale, self.weights, strict=True):
            away = (value - centre) / scale
            bends = (max(away - knot, 0.0) * weight for knot, weight in zip(self.knots, weights[1:], strict=True))
            found.append(away * weights[0] + sum(bends))
        return found


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A question of a tree, or an answer where ``column`` is -1."""

    column: int = -1
    threshold: float = 0.0
    below: int = -1
    """Number of the node that follows where the column is not above the threshold."""
    above: int = -1
    take: bool = False


class Tree(msgspec.Struct, frozen=True, kw_only=True, tag="tree"):
    """A few questions; the first is node 0."""

    nodes: tuple[Node, ...]

    def answers(self, number: int) -> set[bool]:
        """Return which answers there are below a node."""
        node = self.nodes[number]
        return {node.take} if node.column < 0 else self.answers(node.below) | self.answers(node.above)

    def path(self, values: tuple[float, ...]) -> list[Node]:
        """Return the nodes on the way to the answer, which is the last."""
        found = [self.nodes[0]]
        while found[-1].column >= 0:
            node = found[-1]
            found.append(self.nodes[node.below if values[node.column] <= node.threshold else node.above])
        return found


RuleDocument = Union[Constant, Plane, Tree]  # noqa: UP007 - msgspec takes it apart


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its two-sided 95 % interval, in seconds a decision."""

    value: float
    low: float
    high: float


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of the decisions with one action."""

    action: str
    decisions: int
    complete: int
    effective: float
    largest: float


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy is worth."""

    name: str
    taken: float
    """Share of the offers that it takes."""
    value: Figure | None = None
    """Gained within the window; None: it is not known, as of a rule that is learned again for each fold."""
    gain: Figure | None = None
    """Over to take always."""


class Horizon(msgspec.Struct, frozen=True, kw_only=True):
    """What taking gains within one window, and behind it."""

    window_s: float
    seen: tuple[int, int]
    """Outcomes that were seen where left, and where taken."""
    effect: Figure | None = None
    """Of taking against leaving, within the window; None: too few were seen."""
    rest: Figure | None = None
    """The same from its end to the end of the farthest window that was seen often enough; None: it is that one."""


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions of which much the same gain of taking is expected."""

    low: float
    high: float
    """Expected gains, seconds."""
    left: int
    taken: int
    there: float = 0.0
    """Share of the target's offers."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What ``liver-slurm advisor fit`` writes."""

    advisor_model: int = VERSION
    features_version: int
    columns: tuple[Column, ...]
    rule: RuleDocument
    advises: bool
    """The rule is surely better than to take always; otherwise that is what the policy does."""
    verdict: str
    window_s: float
    """Of the outcome that it was learned by."""
    rule_class: str
    learned_by: str
    decisions: int
    runs: int
    target_decisions: int = 0
    """0: it was learned for where its decisions are from."""
    gain: Figure | None = None
    """Over to take always, by folds that the rule has not seen; None: too few data."""
    effect: Figure | None = None
    """Of taking against leaving, in the mean."""
    weights: tuple[Weight, ...] = ()
    clipped: tuple[float, ...] = ()
    """Share of chances that were too small to be used as they are: of the action, then of being seen at each window."""
    outside: float = 0.0
    """Share of the target that nothing in the source is like."""
    tipping_lost_s: float | None = None
    """How much better, where taken, and worse, where left, the lost would have to be for the effect to be none."""
    tipping_concept_s: float | None = None
    """By how much the effect may differ between the domains before the gain is gone."""
    worth: tuple[Worth, ...] = ()
    """Of simple policies, and of the rule, judged by folds that it has not seen; empty: too few data."""
    horizons: tuple[Horizon, ...] = ()
    """Of each window, the nearest first."""
    horizon: str = ""
    """Why this window, in words."""
    overlap: tuple[Bin, ...] = ()
    """Where both actions were tried, from offers that are expected to lose most to those that gain most."""
    tables: tuple[str, ...] = ()
    """SHA-256 of the tables."""
    notes: tuple[str, ...] = ()
    written: float = 0.0
    """Seconds since the epoch."""

    def values(self, features: Mapping[str, float | None]) -> tuple[float, ...]:
        """Return what the rule sees of an offer."""
        return tuple(column.value(features) for column in self.columns)

    def takes(self, values: tuple[float, ...]) -> bool:
        """Return what the rule says, whatever the verdict."""
        rule = self.rule
        if isinstance(rule, Constant):
            return rule.take
        if isinstance(rule, Plane):
            return rule.intercept + sum(rule.parts(values)) > 0.0
        return rule.path(values)[-1].take

    def far(self, values: tuple[float, ...]) -> list[str]:
        """Name the features in which an offer is unlike everything that was seen."""
        pairs = zip(self.columns, values, strict=True)
        return [column.feature for column, value in pairs if column.is_far(value)]

    def speaks(self, values: tuple[float, ...], most: int = 2) -> list[str]:
        """Name the features that speak most for what the rule says, strongest first."""
        rule = self.rule
        if isinstance(rule, Plane):
            sign = 1.0 if self.takes(values) else -1.0
            parts = sorted(zip(rule.parts(values), range(len(values)), strict=True), key=lambda one: -sign * one[0])
            return [self._named(index, values[index]) for part, index in parts[:most] if sign * part > 0.0]
        if isinstance(rule, Tree):
            return [self._named(node.column, values[node.column]) for node in rule.path(values)[:-1]][:most]
        return []

    def _named(self, index: int, value: float) -> str:
        column = self.columns[index]
        if column.missing:
            return f"{column.feature} {'not known' if value else 'known'}"
        return f"{column.feature} {'high' if value > column.fill else 'low'}"


def write_model(path: Path, model: Model) -> None:
    """Write a model.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(model), indent=1) + b"\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error


def read_model(path: Path, features_version: int | None = None) -> Model:
    """Read a model.

    Args:
        path: its file.
        features_version: of the features that it will be asked with; None: it will not be.

    Raises:
        BadInput: it cannot be read, is no model, or is of another version.
    """
    advice = "`liver-slurm advisor fit` writes one"
    try:
        document: Any = msgspec.json.decode(path.read_bytes())
        version = document["advisor_model"]
        if version != VERSION:
            raise BadInput(f"{path}: is an advisor's model of version {version}, not {VERSION}; {advice}")
        model = msgspec.convert(document, Model)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; {advice}") from error
    except (msgspec.ValidationError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is no advisor's model ({' '.join(str(error).split())}); {advice}") from None
    if fault := _fault(model):
        raise BadInput(f"{path}: is a broken advisor's model: {fault}; {advice}")
    if features_version is not None and model.features_version != features_version:
        found = f"{path}: was learned from features of version {model.features_version}, this is {features_version}"
        raise BadInput(f"{found}; collect and fit again")
    return model


def _fault(model: Model) -> str:
    rule, count = model.rule, len(model.columns)
    if isinstance(rule, Plane):
        sizes = {len(rule.centre), len(rule.scale), len(rule.weights)}
        numbers = (rule.intercept, *rule.centre, *rule.scale, *(one for each in rule.weights for one in each))
        if sizes != {count} or any(len(each) != 1 + len(rule.knots) for each in rule.weights):
            return f"its plane does not fit {count} columns"
        if not all(map(math.isfinite, numbers)) or 0.0 in rule.scale:
            return "a number of its plane is none"
    if isinstance(rule, Tree):
        for number, node in enumerate(rule.nodes):
            forward = number < min(node.below, node.above) and max(node.below, node.above) < len(rule.nodes)
            if node.column >= 0 and not (forward and node.column < count):
                return f"node {number} of its tree leads nowhere"
        if not rule.nodes:
            return "its tree is empty"
    return ""
