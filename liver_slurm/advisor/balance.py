"""BalanceNet in two readings: networks that are held to leave nothing unbalanced. Needs torch; imported by who uses it.

The name is from arXiv 2504.19527, of which neither the network nor its loss is known to us. Reading W replaces the
scores: networks for propensity and scores are trained together, and each stage's weighted decisions must look like
those of the stage before. Reading R replaces the regressions: one representation of X whose distribution must be the
same with either action, and among those that are seen, with a head for each action and stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.estimators import Effects
from liver_slurm.advisor.stages import CLIP, Nuisances
from liver_slurm.advisor.table import DecisionTable

_KERNEL_ROWS = 256
"""Rows of a step's kernel matrix, drawn again each time: with all of them an epoch would take time in n²."""


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    balance: float
    """Weight of the imbalance in the loss: λ of reading W, α of reading R; 0.0: none."""
    hidden: int = 32
    epochs: int = 300
    rate: float = 5e-3
    decay: float = 1e-4
    seed: int = 0


def balanced_weights(table: DecisionTable, nuisances: Nuisances, training: Training) -> Nuisances:
    """Return the nuisances with propensity and scores of reading W, for two actions.

    The loss is the cross-entropy of actions and of what was seen, and ``balance`` times the squared differences of the
    means of 1, X, X² and earlier outcomes between each stage's weighted decisions and those of the stage before.
    """
    n, stages = len(table), table.stages
    x = _standard(table.covariates, np.ones(n, dtype=bool))
    earlier = [_standard(table.outcomes[:, [k]], table.seen[:, k]) for k in range(stages - 1)]
    arm = table.actions.astype(np.float64)[:, None]
    inputs = [x] + [np.hstack([x, arm, *earlier[:k]]) for k in range(stages)]
    features = [np.hstack([np.ones((n, 1)), x, x**2, *earlier[: max(0, k)]]) for k in range(-1, stages)]
    labels = torch.tensor(np.column_stack([table.actions, table.seen]), dtype=torch.float32)
    before = torch.tensor(np.column_stack([np.ones((n, 2)), table.seen[:, :-1]]), dtype=torch.float32)
    told = [torch.tensor(one, dtype=torch.float32) for one in inputs]
    means = [torch.tensor(one, dtype=torch.float32) for one in features]

    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        nets = nn.ModuleList(_network(one.shape[1], training.hidden) for one in inputs)
        optimizer = _optimizer(nets, training)
        for _ in range(training.epochs):
            logits = [net(one).squeeze(1) for net, one in zip(nets, told, strict=True)]
            loss = _cross_entropy(logits, labels, before)
            if training.balance > 0.0:
                loss = loss + training.balance * _imbalance(logits, labels, means)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            chances = [torch.sigmoid(net(one)).squeeze(1).numpy() for net, one in zip(nets, told, strict=True)]
    take = np.clip(chances[0].astype(np.float64), CLIP, 1.0 - CLIP)
    scores = np.column_stack(chances[1:]).astype(np.float64)
    known = ~np.isnan(table.logged)
    return replace(
        nuisances,
        propensity=np.where(known, table.logged, np.column_stack([1.0 - take, take])),
        scores=np.clip(scores, CLIP, 1.0),
        clipped=np.column_stack([nuisances.clipped[:, 0], scores < CLIP]),
    )


def balanced_representation(table: DecisionTable, training: Training) -> tuple[Effects, float]:
    """Return reading R's expected outcomes under each action, and how far apart groups are in its representation."""
    n, stages = len(table), table.stages
    x = torch.tensor(_standard(table.covariates, np.ones(n, dtype=bool)), dtype=torch.float32)
    outcomes = np.hstack([_standard(table.outcomes[:, [k]], table.seen[:, k]) for k in range(stages)])
    seen_last = table.outcomes[table.complete, -1]
    centre, scale = float(seen_last.mean()), float(seen_last.std()) or 1.0
    told = torch.tensor(outcomes, dtype=torch.float32)
    rows = [
        [torch.tensor(np.flatnonzero(table.seen[:, k] & (table.actions == a))) for k in range(stages)]
        for a in range(table.arms)
    ]
    groups = torch.tensor(_groups(table), dtype=torch.float32)

    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        body = _network(x.shape[1], training.hidden, out=training.hidden, last=nn.ELU())
        heads = nn.ModuleList(
            nn.ModuleList(_network(training.hidden + k, training.hidden, layers=1) for k in range(stages))
            for _ in range(table.arms)
        )
        optimizer = _optimizer(nn.ModuleList([body, heads]), training)
        for _ in range(training.epochs):
            inside = body(x)
            loss = torch.zeros(())
            for of_arm, seen in zip(heads, rows, strict=True):
                loss = loss + _stagewise(of_arm, inside, told, seen)
            if training.balance > 0.0:
                chosen = torch.randperm(n)[:_KERNEL_ROWS]
                loss = loss + training.balance * _apart(inside[chosen], groups[:, chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            inside = body(x)
            fitted = torch.hstack([of_arm[0](inside) for of_arm in heads]).numpy().astype(np.float64)
            apart = float(_apart(inside, groups))
    fitted = fitted * scale + centre
    return Effects(fitted.mean(axis=0), fitted), apart


def _network(size: int, hidden: int, *, out: int = 1, layers: int = 2, last: nn.Module | None = None) -> nn.Sequential:
    sizes = [size, *[hidden] * layers]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ELU()]
    parts.append(nn.Linear(hidden, out))
    return nn.Sequential(*parts, *([last] if last is not None else []))


def _optimizer(module: nn.Module, training: Training) -> Any:
    return torch.optim.Adam(module.parameters(), lr=training.rate, weight_decay=training.decay)


def _standard(values: Array, seen: Array | Any) -> Array:
    """Standardise columns by what was seen of them; what was not is 0."""
    known = values[seen]
    spread = known.std(axis=0)
    scaled = (values - known.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    return np.where(np.asarray(seen)[:, None], scaled, 0.0)


def _cross_entropy(logits: Sequence[Any], labels: Any, before: Any) -> Any:
    """Sum the cross-entropies of actions, and of what was seen among those that were seen before."""
    loss = torch.zeros(())
    for k, one in enumerate(logits):
        each = nn.functional.binary_cross_entropy_with_logits(one, labels[:, k], reduction="none")
        loss = loss + (each * before[:, k]).sum() / before[:, k].sum()
    return loss


def _imbalance(logits: Sequence[Any], labels: Any, features: Sequence[Any]) -> Any:
    take = torch.sigmoid(logits[0]).clamp(CLIP, 1.0 - CLIP)
    loss = torch.zeros(())
    for chance, mine in ((take, labels[:, 0]), (1.0 - take, 1.0 - labels[:, 0])):
        weight, reference = mine / chance, torch.ones_like(mine)
        for k, means in enumerate(features):
            if k > 0:
                weight = weight * labels[:, k] / torch.sigmoid(logits[k]).clamp(min=CLIP)
            gap = ((weight - reference)[:, None] * means).mean(dim=0)
            loss = loss + (gap**2).sum()
            reference = weight
    return loss


def _stagewise(heads: Any, inside: Any, outcomes: Any, seen: Sequence[Any]) -> Any:
    """Sum one action's squared errors: each stage's head against what the next one says, the last against Y."""
    loss = torch.zeros(())
    for k, head in enumerate(heads):
        rows = seen[k]
        said = head(torch.hstack([inside[rows], outcomes[rows, :k]])).squeeze(1)
        if k + 1 < len(heads):
            with torch.no_grad():
                wanted = heads[k + 1](torch.hstack([inside[rows], outcomes[rows, : k + 1]])).squeeze(1)
        else:
            wanted = outcomes[rows, k]
        loss = loss + ((said - wanted) ** 2).mean()
    return loss


def _groups(table: DecisionTable) -> Array:
    """Return pairs of groups that must look alike, each as +1 in one and -1 in the other: [pairs, n, 2]."""
    pairs = [(table.actions == 1, table.actions == 0)]
    for arm in range(table.arms):
        mine = table.actions == arm
        pairs += [(mine & table.seen[:, k], mine) for k in range(table.stages)]
    return np.array([np.column_stack(pair) for pair in pairs], dtype=np.float64)


def _apart(inside: Any, groups: Any) -> Any:
    """Sum the squared maximum mean discrepancies of the pairs; the kernel is Gaussian, root of the size wide."""
    distance = torch.cdist(inside, inside) ** 2
    kernel = torch.exp(-distance / (2.0 * inside.shape[1]))
    sizes = groups.sum(dim=1, keepdim=True).clamp(min=1.0)
    shares = groups / sizes
    gap = shares[:, :, 0] - shares[:, :, 1]
    return ((gap @ kernel) * gap).sum()
