"""The ledger as a document for ``--json``: its keys are a contract with other programs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liver_slurm.observability.ledger.account import NO_WORLD, Account, held, make_account
from liver_slurm.observability.ledger.causes import BUCKETS, NAMES, PRODUCTIVE, Cause, Seconds, add, by_bucket, text
from liver_slurm.observability.ledger.changes import Change, find_changes
from liver_slurm.observability.ledger.expected import Expected, expect
from liver_slurm.observability.ledger.facts import Facts
from liver_slurm.observability.ledger.restarting import Restarted, restarted
from liver_slurm.observability.ledger.sizes import Sizes, find_sizes
from liver_slurm.rundir.events import BegunAnew

ETTR = "ETTR = productive / (queued + productive + unproductive) = productive seconds / wall seconds of the run"
CAPACITY = "capacity goodput = device-seconds in steps that count / device-seconds offered"


@dataclass(frozen=True)
class Ledger:
    """A run's account with all that is computed from it."""

    account: Account
    changes: tuple[Change, ...]
    sizes: Sizes
    expected: Expected
    restarted: Restarted

    @property
    def wall_s(self) -> float:
        """Seconds from the run's creation to its end, or to its last sign of life."""
        return self.account.facts.until - self.account.facts.created

    @property
    def ettr(self) -> float:
        """Effective training time ratio: see :data:`ETTR`; 0.0 of a run that was created this moment."""
        return ratio(self.account.of_the_run().get(Cause.STEP, 0.0), self.wall_s)

    @property
    def capacity_goodput(self) -> float:
        return ratio(self.account.total().get(Cause.STEP, 0.0), self.offered_device_s)

    @property
    def offered_device_s(self) -> float:
        """Device-seconds that the run held or could have had at once."""
        return self.sizes.offered.integral()


def make_ledger(facts: Facts) -> Ledger:
    """Fold the facts of a run into its ledger."""
    account = make_account(facts)
    changes = find_changes(account)
    return Ledger(account, changes, find_sizes(account), expect(account, changes), restarted(account, changes))


def document(ledger: Ledger) -> dict[str, Any]:
    """Make the document of one run. Times are seconds since the epoch, ``…_s`` are seconds or device-seconds."""
    account, facts = ledger.account, ledger.account.facts
    total = account.total()
    return {
        "run": Path(facts.run).name,
        "run_dir": facts.run,
        "outcome": facts.outcome,
        "created": facts.created,
        "until": facts.until,
        "wall_s": ledger.wall_s,
        "device_s": sum(total.values()),
        "held_device_s": held(total),
        "offered_device_s": ledger.offered_device_s,
        "offered_known": ledger.sizes.known,
        "ettr": ledger.ettr,
        "ettr_formula": ETTR,
        "capacity_goodput": ledger.capacity_goodput,
        "capacity_goodput_formula": CAPACITY,
        "buckets": by_bucket(total),
        "causes": {text(cause): total.get(cause, 0.0) for cause in Cause},
        "wall_buckets": by_bucket(account.of_the_run()),
        **efficiencies(ledger),
        "lost_work": lost_work(account, total),
        "mfu": mfu(account, held(total)),
        "tokens": counted_tokens(facts),
        "successor_known": facts.counted is not None,
        "steps": len(facts.steps),
        "expected": asdict(ledger.expected),
        "restarted": asdict(ledger.restarted),
        "workers": _workers(account),
        "generations": _generations(account),
        "partitions": _partitions(account),
        "changes": [change_document(change) for change in ledger.changes],
    }


def documents(ledgers: Sequence[Ledger]) -> dict[str, Any]:
    """Make the document of several runs; the total is that of all of them together."""
    runs = [document(ledger) for ledger in ledgers]
    sums = {
        name: sum(run[name] for run in runs) for name in ("wall_s", "device_s", "held_device_s", "offered_device_s")
    }
    buckets = {name: sum(run["buckets"][name] for run in runs) for name in NAMES}
    productive = sum(run["wall_buckets"][PRODUCTIVE] for run in runs)
    return {
        "runs": runs,
        "total": {
            **sums,
            "ettr": ratio(productive, sums["wall_s"]),
            "capacity_goodput": ratio(buckets[PRODUCTIVE], sums["offered_device_s"]),
            "buckets": buckets,
        },
    }


def change_document(change: Change) -> dict[str, Any]:
    """Make the document of one change; ``from`` and ``to`` are layouts."""
    fields = asdict(change)
    fields["from"] = fields.pop("source")
    return {**fields, "hidden_s": change.hidden_s}


def efficiencies(ledger: Ledger) -> dict[str, float]:
    """Return Google's two slice efficiencies, a device for a slice.

    They are of all that the run may have, since its job began.
    """
    facts = ledger.account.facts
    waited = ledger.account.of_the_run().get(Cause.QUEUE, 0.0)
    total = facts.job.most * (ledger.wall_s - waited)
    return {
        "stepping_slice_efficiency": ratio(ledger.sizes.world.integral(), total),
        "available_slice_efficiency": ratio(ledger.sizes.held.integral(), total),
    }


def lost_work(account: Account, total: Seconds) -> dict[str, float]:
    """Return the steps that were trained and do not count, and what they took."""
    facts = account.facts
    steps = sum(event.steps_lost for event in facts.events if isinstance(event, BegunAnew))
    if facts.counted is not None:
        steps += int((facts.steps.step > facts.counted).sum())
    return {"steps": steps, "device_s": total.get(Cause.WASTED, 0.0)}


def counted_tokens(facts: Facts) -> int:
    """Return the tokens of the steps that count."""
    counts = slice(None) if facts.counted is None else facts.steps.step <= facts.counted
    return int(facts.steps.tokens[counts].sum())


def mfu(account: Account, held_device_s: float) -> dict[str, float | None]:
    """Return the model FLOPs utilization inside steps, and over all device-seconds that were held; None: not known."""
    steps = account.facts.steps
    known = np.isfinite(steps.mfu)
    if not known.any():
        return {"steps": None, "run": None}
    sizes = {world.generation: len(world.members) for world in account.worlds}
    ranks = np.array([sizes.get(generation, 0) for generation in steps.generation.tolist()])
    seconds = (steps.end - steps.start) * ranks
    done = float((steps.mfu * seconds)[known].sum())
    return {"steps": ratio(done, float(seconds[known].sum())), "run": ratio(done, held_device_s)}


def ratio(part: float, whole: float) -> float:
    """Return a ratio; 0.0 of nothing."""
    return part / whole if whole > 0.0 else 0.0


def _workers(account: Account) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    sums: dict[str, Seconds] = {}
    for one, spent in zip(account.presences, account.spent, strict=True):
        rows.setdefault(
            one.place,
            {"worker": one.place, "guaranteed": one.guaranteed, "host": one.host, "partition": one.partition},
        )
        for seconds in spent.values():
            add(sums.setdefault(one.place, {}), seconds)
    return [{**row, **_sums(sums.get(name, {}))} for name, row in rows.items()]


def _generations(account: Account) -> list[dict[str, Any]]:
    sums = _grouped(account, lambda index, generation: generation)
    rows: list[dict[str, Any]] = [
        {
            "generation": world.generation,
            "layout": world.layout,
            "workers": len(world.members),
            "begin": world.begin,
            "end": world.end,
            **_sums(sums.get(world.generation, {})),
        }
        for world in account.worlds
    ]
    outside = {"generation": NO_WORLD, "layout": None, "workers": None, "begin": None, "end": None}
    return [*rows, {**outside, **_sums(sums.get(NO_WORLD, {}))}]


def _partitions(account: Account) -> list[dict[str, Any]]:
    sums = _grouped(account, lambda index, generation: account.presences[index].partition)
    return [{"partition": name, **_sums(seconds)} for name, seconds in sorted(sums.items())]


def _grouped(account: Account, key: Callable[[int, int], Any]) -> dict[Any, Seconds]:
    sums: dict[Any, Seconds] = {}
    for index, spent in enumerate(account.spent):
        for generation, seconds in spent.items():
            add(sums.setdefault(key(index, generation), {}), seconds)
    return sums


def _sums(seconds: Seconds) -> dict[str, Any]:
    return {"device_s": sum(seconds.values()), "held_device_s": held(seconds), "buckets": by_bucket(seconds)}


def largest(seconds: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return what is not nothing, the largest first."""
    return sorted((pair for pair in seconds if pair[1] > 0.0), key=lambda pair: -pair[1])


def causes_of(bucket: str) -> list[Cause]:
    """Return the causes that a bucket is the sum of."""
    return [cause for cause, name in BUCKETS.items() if name == bucket]
