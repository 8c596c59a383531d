"""What is known of sudden deaths, as a part of the state that outlives a coordinator; see :mod:`parts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core.records import BegunAnew, Committed, MembersLost, Record
from liver_slurm.policy.setbacks import Breakdown, Setback
from liver_slurm.protocol.messages import Parked


@dataclass(frozen=True)
class Rescue:
    """How a world follows a broken one."""

    lost: tuple[str, ...]
    """Members of the broken world that are gone."""
    step: int
    """Completed steps that the next world begins with."""
    scribe: str = ""
    """Survivor that adds to the metrics what a lost worker did not write any more; empty: nobody has to."""
    checkpoint: str = ""
    """Folder that the next world loads; empty: its state comes from the survivors."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Lost members whose state comes from a mirror, and the survivor that keeps it."""
    back: bool = False
    """All go back to snapshots of this step."""

    @property
    def repeats(self) -> bool:
        """Steps behind :attr:`step` may be in the metrics already, and are trained again."""
        return self.back or bool(self.checkpoint)


@dataclass(frozen=True)
class FoundCheckpoint:
    """The newest checkpoint that a run could go back to."""

    path: str
    """Empty: there is none."""
    step: int
    why_none: str = ""


@dataclass(frozen=True)
class Damage:
    """The live world is broken: members of it are lost, or a collective of it has failed."""

    generation: int = -1
    """Of the broken world; -1: the live world is whole."""
    lost: tuple[str, ...] = ()
    """Members of it that are gone."""
    reason: str = ""
    """What was first known of it."""
    gone: Mapping[str, int] = field(default_factory=dict)
    """Every worker that was lost out of a live world, and that world's generation: it is not let in again."""
    processes: Mapping[str, int] = field(default_factory=dict)
    """The same by process: one that has not heard of its world's commit does not say that it is in it."""
    since: float = 0.0
    """When that was first known, seconds since the epoch."""
    parked: Mapping[str, Parked] = field(default_factory=dict)
    """What each survivor has said of how far it has come."""
    first: Breakdown | None = None
    """How the live world broke, as far as was known at once; None: it is whole, or another coordinator saw it."""
    setback: Setback | None = None
    """The step that the last worlds did not come beyond; None: none broke yet."""
    searching: bool = False
    """The checkpoints are being looked through."""
    checkpoint: FoundCheckpoint | None = None
    """What was found; None: nobody has looked yet."""

    @property
    def broken(self) -> bool:
        """The live world trains no more."""
        return self.generation >= 0

    def lost_out_of(self, name: str, generation: int, process: str = "") -> int:
        """Return the generation of the world that a process was lost out of; -1: it was not.

        Args:
            name: the worker's.
            generation: of the world that it says it is in, or before.
            process: which process it is; empty: not known.
        """
        gone = self.gone.get(name, -1)
        return self.processes.get(process, gone if 0 <= generation <= gone else -1)

    def apply(self, record: Record, generation: int, processes: Mapping[str, str]) -> Damage:
        """Fold one record in.

        Args:
            record: of the journal.
            generation: of the world that is live before it.
            processes: which process each member of that world is.
        """
        if isinstance(record, MembersLost):
            before = self if self.generation == record.generation else Damage(record.generation, setback=self.setback)
            return replace(
                before,
                reason=before.reason or record.reason,
                lost=tuple(dict.fromkeys((*before.lost, *record.members))),
                gone={**self.gone, **dict.fromkeys(record.members, record.generation)},
                processes=self._without({name: processes.get(name, "") for name in record.members}, record.generation),
            )
        if isinstance(record, Committed):
            return Damage(gone=self.gone, processes=self.processes, setback=self.setback)
        if isinstance(record, BegunAnew):  # nobody of the world before has a part in what comes
            return Damage(processes=self._without(processes, generation))
        return self

    def _without(self, processes: Mapping[str, str], generation: int) -> dict[str, int]:
        """Return the processes that are lost once these members of the world of a generation are, too."""
        return {**self.processes, **{process: generation for process in processes.values() if process}}
