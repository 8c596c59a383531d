"""Partitions that are made up: where taking nodes costs nothing, where it seldom does harm, and where it often does.

One node at a time comes and goes. The chance a second that it is taken away is, with the hour of day (1 at two in the
afternoon, -1 at two in the night) and a load that wanders from hour to hour with mean 0 and variance 1::

    hazard = exp(DAY * day + LOAD * load) / life_s

from its second minute on. So a run can know of it what the clock says, and what became of the last nodes. Figures are
those of the toy partition in :mod:`liver_slurm.advisor.synthetic_partition`, as far as the product has such things:
here all notices are served, or none is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from liver_slurm.config.recovery import RecoverySection
from liver_slurm.config.schema import (
    ComponentSection,
    ElasticSection,
    JobConfig,
    JobSection,
    LiveSection,
    ModelSection,
    StandbySection,
    TrainSection,
)
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.setting import BEGIN, Setting
from liver_slurm.simulation.trace import Span, from_spans

DAY_SECONDS, HOUR = 86400.0, 3600.0
DAY, LOAD = 0.8, 0.7
GAP = 750.0
"""Mean seconds from the end of one node's time to the beginning of the next one's."""
SHORTEST = 60.0
"""Seconds for which a node is there at least."""
REMEMBERED = 0.8
"""Share of the last hour's load in this hour's."""
GUARANTEED, EACH = 2, 2
"""Guaranteed workers, and workers of a node."""
PREPARE, LOAD_S = 10.0, 20.0
"""Seconds to prepare a growth, and to go back to a checkpoint."""


@dataclass(frozen=True)
class Regime:
    """How long nodes stay, and what taking and losing them costs."""

    life_s: float
    """Mean life at a usual hour and load."""
    notice: float
    """Seconds of notice; 0: none, and the run goes back to its last checkpoint with each loss."""
    change_s: float
    """That a change of layout costs training."""
    save_every_s: float
    """Between two checkpoints."""

    @property
    def loss_s(self) -> float:
        """What the end of a node's time costs training, in the mean."""
        return self.change_s + (LOAD_S + self.save_every_s / 2 if self.notice == 0.0 else 0.0)

    def costs(self, nodes: int) -> Costs:
        """Return what things take; with n times the workers, a step takes an n-th."""
        sizes = [GUARANTEED + EACH * count for count in range(nodes + 1)]
        return Costs(
            step_s={f"tp1pp1dp{size}": GUARANTEED / size for size in sizes},
            join_s=20.0,
            prepare_s=PREPARE,
            stream_s=0.1,
            exposed_pause_s=self.change_s,
            exposed_overlap_s=self.change_s,
            detect_s=1.0,
            recover_s=LOAD_S,
            load_s=LOAD_S,
            save_s=0.0,
            stall_s=0.0,
            save_every_s=self.save_every_s,
        )


REGIMES = {
    "free": Regime(life_s=3000.0, notice=60.0, change_s=1.2, save_every_s=1800.0),
    "calm": Regime(life_s=3000.0, notice=0.0, change_s=9.0, save_every_s=360.0),
    "volatile": Regime(life_s=1200.0, notice=0.0, change_s=18.0, save_every_s=1800.0),
}


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one run."""

    setting: Setting
    regime: Regime
    loads: tuple[float, ...]
    """Of each hour."""

    def hazard(self, now: float) -> float:
        """Return the chance a second that a node is taken away, which no run knows; ``now``: since the epoch."""
        hour = int((now - BEGIN) // HOUR)
        load = self.loads[min(max(hour, 0), len(self.loads) - 1)]
        day = math.cos(2 * math.pi * (now / HOUR - 14.0) / 24.0)
        return math.exp(DAY * day + LOAD * load) / self.regime.life_s


def draw(regime: Regime, seed: int, days: float) -> Drawn:
    """Draw the nodes of one run by lot."""
    random, seconds = Random(f"regime {seed}"), days * DAY_SECONDS
    loads = [random.gauss(0.0, 1.0)]
    while len(loads) * HOUR < seconds:
        loads.append(REMEMBERED * loads[-1] + math.sqrt(1.0 - REMEMBERED**2) * random.gauss(0.0, 1.0))
    found = Drawn(Setting(from_spans("none", seconds, [])), regime, tuple(loads))
    spans: list[Span] = []
    at = random.expovariate(1.0 / GAP)
    while at < seconds:
        end = _end(found, at + SHORTEST, random)
        spans.append(Span(f"node{len(spans)}", at, end))
        at = end + random.expovariate(1.0 / GAP)
    trace = from_spans(f"seed {seed}", seconds, spans)
    return replace(found, setting=Setting(trace, regime.notice, seed=seed))


def _end(drawn: Drawn, begin: float, random: Random) -> float:
    """Draw when a node is taken away: the hazard is constant within each hour of the load, and within its parts."""
    left, at = random.expovariate(1.0), begin
    while True:
        step = HOUR / 4 - math.fmod(at, HOUR / 4)
        hazard = drawn.hazard(BEGIN + at)
        if left < hazard * step:
            return at + left / hazard
        left -= hazard * step
        at += step


def job(nodes: int = 1) -> JobConfig:
    """Return the job that trains there: two guaranteed workers, and nodes of two."""
    sizes = [GUARANTEED + EACH * count for count in range(nodes + 1)]
    return JobConfig(
        job=JobSection(heartbeat=1.0, lost_after=30.0, prepare_timeout=300.0),
        model=ModelSection(num_layers=8, hidden_size=64, num_attention_heads=8, vocab_size=256),
        train=TrainSection(
            seq_length=64, micro_batch_size=1, global_batch_size=math.lcm(*sizes), distributed_optimizer=True
        ),
        live=LiveSection(component=(ComponentSection(tasks_per_node=GUARANTEED),)),
        standby=StandbySection(
            partitions=("spot",), max_jobs=nodes, tasks_per_node=EACH, poll=30.0, queries_per_minute=1e6,
            time="48:00:00", hold=60.0, explore=0.4, commit=600.0,
        ),
        recovery=RecoverySection(mirror="off"),
        elastic=ElasticSection(layouts=tuple(f"tp1pp1dp{size}" for size in sizes), settle=0.0),
    )  # fmt: skip
