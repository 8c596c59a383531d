"""``bench policies``: goodput of each policy on simulated partitions, of the advisor too. Needs the extra ``advisor``.

The product's own coordinator runs in simulated time on three partitions that are made up (free, calm, volatile), and
with ``--trace FILE`` on real ones, once where notices are served and once where none is given. The advisor learns from
runs of policy ``explore`` with other seeds; what its rule is worth is known from twins as well: runs that take and that
leave one and the same offer. Goodput is steps that count, over those that the guaranteed workers alone would train.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import msgspec

from liver_slurm.advisor.model import Model, write_model
from liver_slurm.app.collect import collect
from liver_slurm.base import interrupts
from liver_slurm.bench import part_tables
from liver_slurm.bench.omniscient import clairvoyant, informed, never, priced
from liver_slurm.config.schema import JobConfig
from liver_slurm.policy import engine
from liver_slurm.policy.api import Policy
from liver_slurm.simulation.elastic_run import ElasticRun
from liver_slurm.simulation.event_file import event_file
from liver_slurm.simulation.regimes import REGIMES, Drawn, Regime, draw, job
from liver_slurm.simulation.seeds import interval
from liver_slurm.simulation.setting import Setting
from liver_slurm.simulation.trace_files import read_trace
from liver_slurm.simulation.twins import Twin, twins

MODE = "pause"
NODES = 4
"""Of a real trace that a run may have; which ones is drawn by lot for each run."""
NEW, OTHER = 10_000, 20_000
"""First seeds of runs that are judged, and of twins; those of logs begin with 0."""
APART = 100_000
"""Runs of two seeds of the benchmark's have seeds so far apart."""
LEAST, WORTH = 0.005, 0.08
"""What the advisor may lose to greedy anywhere, and what it has to gain where nodes are volatile."""


@dataclass(frozen=True)
class _Sizes:
    decisions: int = 2_000
    """Of one log."""
    logs: int = 2
    judged: int = 8
    """Runs by which each policy is judged."""
    twins: int = 40


QUICK = _Sizes(decisions=250, logs=1, judged=2, twins=8)


@dataclass(frozen=True)
class _Place:
    """Where runs are simulated."""

    name: str
    regime: Regime
    trace: Path | None = None

    @property
    def nodes(self) -> int:
        return 1 if self.trace is None else NODES

    def draw(self, seed: int) -> Drawn:
        """Return one run's nodes."""
        if self.trace is None:
            return draw(self.regime, seed, 1.0)
        random = Random(f"nodes {seed}")
        trace = read_trace(self.trace, random)
        nodes = sorted({span.node for span in trace.spans})
        mine = set(random.sample(nodes, min(NODES, len(nodes))))
        trace = replace(trace, spans=tuple(span for span in trace.spans if span.node in mine))
        return Drawn(Setting(trace, self.regime.notice, seed=seed), self.regime, ())


def run(quick: bool, traces: Sequence[str] = (), seed: int = 0, seeds: int = 1, jobs: int = 1) -> dict[str, Any]:
    """Simulate.

    Args:
        quick: few runs, which show that it works and no more.
        traces: files of real ones, besides.
        seed: of all that is drawn by lot.
        seeds: simulate with so many, from ``seed`` on; where there are several, each has one log.
        jobs: processes, each of which simulates one partition with one seed at a time.

    Raises:
        BadInput: scikit-learn is not installed, or a trace cannot be read.
        LiverError: a process has failed.
    """
    from liver_slurm.advisor.fitting import need_libraries
    from liver_slurm.bench.policy_seeds import in_processes, over_seeds

    need_libraries()
    places = make_places(traces)
    for place in places:
        place.draw(0)  # one that cannot be read is told of at once
    sizes = make_sizes(quick, several=seeds > 1)
    numbers = range(seed, seed + seeds)
    with interrupts.temporary_folder("liver-policies-") as folder:  # all processes' files: an interrupted one is killed
        if jobs == 1:
            cases = [row for number in numbers for place in places for row in compared(place, sizes, number, folder)]
        else:
            cases = in_processes(quick, traces, len(places), numbers, jobs, folder)
    document: dict[str, Any] = {"bench": "policies", "decisions": sizes.decisions, "logs": sizes.logs}
    document |= {"seed": seed, "seeds": seeds}
    if seeds > 1:
        document["by_seed"], cases = cases, over_seeds(cases)
    return document | {"cases": cases, "said": _said(cases)}


def make_places(traces: Sequence[str]) -> list[_Place]:
    """Return where runs are simulated: on the partitions that are made up, and on real traces."""
    places = [_Place(name, regime) for name, regime in REGIMES.items()]
    for path in map(Path, traces):
        places += [_Place(f"{path.name}, prices of {name}", REGIMES[name], path) for name in ("free", "volatile")]
    return places


def make_sizes(quick: bool, several: bool) -> _Sizes:
    """Return how much is simulated; ``several``: with each of several seeds."""
    sizes = QUICK if quick else _Sizes()
    return replace(sizes, logs=1) if several else sizes


def table(document: dict[str, Any]) -> str:
    """Show a table of each partition, and what was asked for."""
    return "\n\n".join([part_tables(document["cases"], without=("seed",)), "\n".join(document["said"])])


def compared(place: _Place, sizes: _Sizes, seed: int, where: Path) -> list[dict[str, Any]]:
    """Simulate every policy on the same nodes, and the advisor with a model of each log; see :func:`run`.

    Args:
        where: folder for logs and models.
    """
    first = APART * seed
    part = f"{place.name}, logs of {sizes.decisions} decisions"
    loss = place.regime.loss_s if place.regime.notice == 0.0 else 0.0
    simple: dict[str, Policy | str] = {
        "never": never, "greedy": "greedy", "hysteresis": "hysteresis", "cost-aware": "cost-aware",
        "cost-aware, price of unserved notices": priced(loss),
    }  # fmt: skip
    drawn = [place.draw(first + NEW + number) for number in range(sizes.judged)]
    reached = {name: [_goodput(place, one, policy) for one in drawn] for name, policy in simple.items()}
    if place.trace is None:
        reached["oracle: true chances"] = [_goodput(place, one, informed(one)) for one in drawn]
    reached["oracle: when each node goes"] = [_goodput(place, one, None) for one in drawn]
    opened, bare, gated, twin_rows = 0, [], [], []
    known = _twins(place, sizes.twins, first + OTHER)
    for number in range(sizes.logs):
        with interrupts.temporary_folder(f"log-{number}-", where) as folder:
            model = _learned(place, sizes.decisions, first + 1_000 * number, folder)
            twin_rows.append(_beside_twins(part, number, model, known))
            bare.append([_advised(place, one, model, folder) for one in drawn])
            gated.append(bare[-1] if model.advises else reached["greedy"])  # without advice all is taken
        opened += model.advises
    reached["advisor, no gate"] = [fmean(each) for each in zip(*bare, strict=True)]
    reached["advisor, gate"] = [fmean(each) for each in zip(*gated, strict=True)]
    rows = [_row(part, name, each, reached["greedy"]) for name, each in reached.items()]
    rows[-1] |= {"gate opens": f"{opened} of {sizes.logs}"}
    return [row | {"seed": seed} for row in rows + twin_rows]


def _row(part: str, name: str, found: Sequence[float], greedy: Sequence[float]) -> dict[str, Any]:
    more = [one - other for one, other in zip(found, greedy, strict=True)]
    low, high = interval(more) if any(more) else (0.0, 0.0)
    gained = {"over greedy": fmean(more), "from": low, "to": high}
    return {"part": part, "policy": name, "goodput": fmean(found), **gained, "gate opens": ""}


def _goodput(place: _Place, drawn: Drawn, policy: Policy | str | None, config: JobConfig | None = None) -> float:
    """Simulate one run; a policy that is none is told by the run itself when nodes go."""
    name = policy if isinstance(policy, str) else "given"
    config = job(place.nodes) if config is None else config
    costs = place.regime.costs(place.nodes)
    run = ElasticRun(config, drawn.setting, costs, name, MODE)
    with ExitStack() as stack:
        if not isinstance(policy, str):
            stack.enter_context(engine.given(name, policy or clairvoyant(run, place.regime)))
        found = run.run()
    return found.account.steps * max(costs.step_s.values()) / drawn.setting.trace.seconds


def _advised(place: _Place, drawn: Drawn, model: Model, folder: Path) -> float:
    """Simulate one run that follows a model's rule, whatever the gate has said."""
    path = folder / "bare.json"
    if not path.exists():  # a model is read once by path
        write_model(path, msgspec.structs.replace(model, advises=True))
    config = job(place.nodes)
    return _goodput(place, drawn, "advisor", replace(config, standby=replace(config.standby, advisor=str(path))))


def _learned(place: _Place, decisions: int, seed: int, folder: Path) -> Model:
    """Log runs, with seeds from ``seed`` on, until there are enough decisions, and fit a model as the command does."""
    from liver_slurm.advisor.fitting import fit
    from liver_slurm.advisor.preparing import Wish
    from liver_slurm.advisor.rows import read_rows, write_rows

    runs: list[str] = []
    counted = 0
    while counted < decisions:
        setting = place.draw(seed).setting
        with event_file(folder / "log", f"run-{seed}") as heard:
            ElasticRun(job(place.nodes), setting, place.regime.costs(place.nodes), "explore", MODE, heard).run()
        runs.append(str(folder / "log" / f"run-{seed}"))
        counted += len(collect(runs[-1:]).rows)
        seed += 1
    found = collect(runs)
    write_rows(folder / "table.jsonl", found.header, found.rows)
    return fit(read_rows([folder / "table.jsonl"]), None, Wish(), time.time())


def _twins(place: _Place, most: int, first: int) -> list[Twin]:
    """Return twins of several runs, with seeds from ``first`` on; none: the trace ends before the farthest window."""
    found: list[Twin] = []
    for seed in range(first, first + most):
        if len(found) >= most:
            break
        setting = place.draw(seed).setting
        found += twins(job(place.nodes), setting, place.regime.costs(place.nodes), MODE, max(2, most // 8))
    return found[:most]


def _beside_twins(part: str, number: int, model: Model, known: Sequence[Twin]) -> dict[str, Any]:
    """Compare what a model says with what twins know: the mean effect of taking, and the gain of its rule."""
    effects = [one.effect(model.window_s) for one in known]
    left = [0.0 if model.takes(model.values(one.features)) else 1.0 for one in known]
    gains = [-effect * leaves for effect, leaves in zip(effects, left, strict=True)]
    row: dict[str, Any] = {"part": f"{part}: seconds a decision by model and by twins", "log": number}
    row |= {"window": model.window_s, "decisions": model.decisions, "runs": model.runs}
    for name, figure, truth in (("effect", model.effect, effects), ("rule's gain", model.gain, gains)):
        row[f"{name}, said"] = "too few data" if figure is None else f"{figure.low:+.0f} to {figure.high:+.0f}"
        row[f"{name}, twins"] = "none" if len(truth) < 2 else "{:+.0f} to {:+.0f}".format(*interval(truth))
    return row


def _said(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Say of each partition whether the gated advisor is as good as greedy, and what could be gained."""
    said = []
    for part in dict.fromkeys(case["part"] for case in cases if "policy" in case):
        over = {case["policy"]: case["over greedy"] for case in cases if case["part"] == part}
        gated = over["advisor, gate"]
        best = max(over[name] for name in over if name.startswith("oracle: "))
        attainable = over.get("oracle: true chances", best)
        holds = "yes" if gated >= -LEAST else "NO"
        line = f"{part}: gated advisor {gated:+.3f} over greedy; not below by more than {LEAST:g}: {holds}"
        if part.startswith("volatile"):
            line += f"; above by {WORTH:g}: {'yes' if gated >= WORTH else 'NO'}"
        said.append(f"{line}; attainable: {attainable:+.3f}, with foresight {best:+.3f}")
    return said
