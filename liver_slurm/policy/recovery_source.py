"""Recovery source: where the state of the world after a broken one comes from, decided from what its survivors hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from liver_slurm.parallel.membership import World
from liver_slurm.protocol.messages import Parked
from liver_slurm.reshard.mirrors import Extent, without_holder
from liver_slurm.reshard.snapshots import Survivor, newest_common


@dataclass(frozen=True)
class Source:
    """Where the next world's state comes from, and why."""

    kind: str
    """``survivors``, ``mirrors`` (of them, for what only the dead held), ``checkpoint``, or ``start``: as it began."""
    step: int
    reason: str
    redone: tuple[str, ...] = ()
    """Survivors that make the last update now, which others have made."""
    scribe: str = ""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Lost members, and the survivors that keep their mirrors."""
    verified: Mapping[str, int] = field(default_factory=dict)
    """Of these mirrors: see :class:`~liver_slurm.protocol.messages.Parked`."""
    back: bool = False
    """The step is one that snapshots were taken at, and all go back to those."""
    checkpoint: str | None = None
    """Folder that the next world loads; empty: it begins as the run did; None: there is no need of one, or it is not
    looked for yet."""


def choose_source(
    live: World, lost: frozenset[str], parked: Sequence[Parked], distributed: bool, stood_at: int = -1
) -> Source:
    """Say from where every box of the next world's state can be had.

    With replicas or mirrors of everything among the survivors, that is the state with the last update that any of them
    has begun; else the newest one that snapshots were put by of, wherever they are needed; else a checkpoint.

    Args:
        live: the broken world.
        lost: members of it that are gone.
        parked: what all others have said.
        distributed: whether the optimizer's state is divided among ranks that hold the same parameters.
        stood_at: step of the state that an attempt has begun to move; -1: none has. Whoever parked before may have come
            to it since, and has no way back but to a snapshot.
    """
    if not parked:
        return Source("checkpoint", live.step, "no member of the live world is left")
    ranks = [rank for rank, name in enumerate(live.members) if name in lost]
    alone = [live.members[rank] for rank in without_holder(live.layout, ranks, distributed)]
    current = _last_update(live, lost, parked, alone, distributed, stood_at)
    if current.kind != "checkpoint":
        return current
    held = [Survivor(one.worker, _stays_at(one, stood_at), one.own, [*one.kept]) for one in parked]
    if (common := newest_common(held, alone)) is None:
        return current
    step, mirrors = common
    keeping = ", ".join(f"{keeper} keeps {name}" for name, keeper in mirrors.items()) or "all members are left"
    reason = f"{current.reason}; all go back to step {step}, of which {keeping}"
    return Source("mirrors", step, reason, scribe=parked[0].worker, mirrors=mirrors, back=True)


def _stays_at(one: Parked, stood_at: int) -> int:
    """Return the step that a survivor's live state is of for certain; -1: of none."""
    return -1 if one.reached == "torn" or -1 < stood_at != one.step else one.step


def _last_update(
    live: World, lost: frozenset[str], parked: Sequence[Parked], alone: Sequence[str], distributed: bool, stood_at: int
) -> Source:
    """Say from where the state with the last update that any survivor has begun can be had.

    Args:
        alone: those of the lost whose state no survivor's own is.
    """
    step = stood_at if stood_at >= 0 else max((one.step for one in parked), default=live.step)
    made = [one.worker for one in parked if one.step == step]
    behind = [one for one in parked if one.step != step]
    torn = [one.worker for one in parked if one.reached == "torn"]
    unfit = [one.worker for one in behind if one.step != step - 1 or one.reached != "gradients"]
    if torn:
        was = "was" if len(torn) == 1 else "were"
        return Source("checkpoint", step, f"{', '.join(torn)} {was} interrupted inside an update")
    if unfit:
        return Source("checkpoint", step, f"{', '.join(unfit)} cannot come to step {step} by an update")
    mirrors = {name: found for name in alone if (found := _keeper(name, step, parked))}
    if len(mirrors) < len(alone):
        names = ", ".join(name for name in alone if name not in mirrors)
        what = "the distributed optimizer's shards" if distributed else f"of {live.layout} the state"
        return Source("checkpoint", step, f"{what} of {names} have neither a replica nor a mirror at step {step}")
    reason = f"replicas among {len(parked)} survivors hold all state" if lost else "all members are left"
    by_name = {one.worker: one for one in parked}
    verified = {name: by_name[keeper].verified.get(name, -1) for name, keeper in mirrors.items()}
    if mirrors:
        reason = ", ".join(
            f"{keeper} mirrors {name}, {_proven(verified[name], step)}" for name, keeper in mirrors.items()
        )
    kind, redone = "mirrors" if mirrors else "survivors", tuple(one.worker for one in behind)
    return Source(kind, step, reason, redone, (made or [behind[0].worker])[0], mirrors, verified)


def _proven(verified: int, step: int) -> str:
    """Say when a mirror was proven that is used at ``step``."""
    return f"verified at step {verified} and used at {step}" if verified >= 0 else "which no proof was made of yet"


def _keeper(name: str, step: int, parked: Sequence[Parked]) -> str:
    """Return the survivor whose mirror of a lost member reaches ``step``; empty: there is none."""
    for one in parked:
        if name in one.mirrors and Extent(*one.mirrors[name]).reaches(step):
            return one.worker
    return ""
