"""The events of a reconfiguration, and its figures, which its commit record and the status document have too. Pure."""

from __future__ import annotations

from typing import TypedDict

import msgspec

from liver_slurm.rundir.event_base import Document, EventBase, plain, snake


class Route(TypedDict):
    """Who goes where: what the events of a reconfiguration have in common, as arguments for their constructors."""

    source: str
    to: str
    cause: str
    members: tuple[str, ...]
    joiners: tuple[str, ...]
    leavers: tuple[str, ...]


class ReconfigurationStarted(EventBase, frozen=True, kw_only=True):
    """A target world is being prepared; ``generation`` is that world's."""

    source: str = msgspec.field(name="from", default="")
    """Layout of the live world."""
    to: str
    """Layout of the target world."""
    cause: str = ""
    """``notice``, ``request``, ``capacity``, ``successor`` or ``loss``."""
    members: tuple[str, ...] = ()
    """Of the target world, in rank order."""
    joiners: tuple[str, ...] = ()
    leavers: tuple[str, ...] = ()
    reason: str = ""


class RecoveryPlanned(EventBase, frozen=True, kw_only=True):
    """The live world is broken, its survivors stand still, and the next world is chosen."""

    source: str = msgspec.field(name="from", default="")
    """Layout of the broken world."""
    to: str
    members: tuple[str, ...]
    """Of the next world, in rank order."""
    lost: tuple[str, ...]
    state_from: str
    """``survivors``, ``mirrors``, ``checkpoint``, or ``start``: as the run began, since there is no checkpoint yet."""
    checkpoint: str = ""
    """The folder, if state comes from there."""
    step: int
    """Steps that the next world begins with."""
    redone: tuple[str, ...] = ()
    """Survivors that make the last update now, which others have made."""
    mirrors: dict[str, str] = msgspec.field(default_factory=dict)
    """Lost members whose state comes from a mirror, and the survivor that keeps it."""
    verified: dict[str, int] = msgspec.field(default_factory=dict)
    """Of mirrors that are current to the last update: the step at which each was proven last to be what its owner had,
    -1 for none. What lies between this and ``step`` was replayed since."""
    reason: str
    known_for_s: float
    """Seconds since the world was found broken."""


class ReconfigurationPrepared(EventBase, frozen=True, kw_only=True):
    """All workers have built their part of the target world."""

    prepare_s: float
    stream_steps: int | msgspec.UnsetType = msgspec.UNSET
    """Steps before the cutover from which state streams; only in mode overlap."""
    wire_s: float | msgspec.UnsetType = msgspec.UNSET
    """Estimate of the time that state takes on the wire; only in mode overlap."""
    reason: str = ""


class ReconfigurationStreamed(EventBase, frozen=True, kw_only=True):
    """All workers have moved their state and voted for the commit."""

    stream_s: float
    reason: str = ""


class ReconfigurationStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconfiguration did and took, as its commit record, its event and the status document say.

    Bytes and digests are sums over all workers, peaks and seconds the maximum. Fields with a default are younger than
    the rest: in files of older versions they are missing.
    """

    source: str = msgspec.field(name="from")
    to: str
    cause: str
    members: tuple[str, ...]
    joiners: tuple[str, ...]
    leavers: tuple[str, ...]
    reason: str
    mode: str
    """``overlap``, ``pause`` or ``flat``: what was done, which may be less than what the job file asks for."""
    cutover_step: int
    """Steps that the old world has completed."""
    prepare_s: float
    plan_s: float
    stream_s: float
    bytes_moved: int
    bytes_remote: int
    bytes_local: int
    bytes_early: int = 0
    bytes_gradients: int = 0
    hook_s: float = 0.0
    gradient_staging_bytes: int = 0
    staging_peak_bytes: int
    memory_peak_bytes: int
    state_peak_bytes: int = 0
    late_layers: int = 0
    image_bytes: int = 0
    """Of host memory in which state waited for the old world to go, over all workers; mode flat."""
    digests_checked: int


class CommitStats(ReconfigurationStats, frozen=True, kw_only=True):
    """What is known at the commit, with what the pause will be counted from."""

    paused_at: float
    """End of the old world's last optimizer step, seconds since the epoch."""
    gap_s: float
    """The gap that two steps have anyway."""

    def to_document(self) -> Document:
        """Return the field ``summary`` of a commit record."""
        return plain(self)

    def committed(self, generation: int, time: float, began: float, gate_s: float) -> ReconfigurationCommitted:
        """Return the event, when all members of the new world, ``generation``, have entered it.

        Args:
            generation: of the new world.
            time: now, seconds since the epoch.
            began: when the last member began its first forward pass, seconds since the epoch.
            gate_s: how long the first optimizer step waited for the commit.
        """
        known = msgspec.structs.asdict(self)
        pause_s = max(0.0, began - known.pop("paused_at") - known.pop("gap_s"))
        return ReconfigurationCommitted(
            **known,
            generation=generation,
            time=time,
            pause_s=pause_s,
            gate_s=gate_s,
            exposed_s=pause_s + gate_s + self.hook_s,
        )


class ReconfigurationCommitted(ReconfigurationStats, frozen=True, kw_only=True, tag_field="event", tag=snake):
    """A reconfiguration is over: everybody trains in the new world."""

    time: float = 0.0
    generation: int = -1
    pause_s: float
    """Training stood still from the old world's last optimizer step to the new one's first forward pass, less the gap
    that two steps have anyway."""
    gate_s: float = 0.0
    """The first optimizer step of the new world waited for the commit."""
    exposed_s: float = 0.0
    """All that training waited: ``pause_s + gate_s + hook_s``."""


class ReconfigurationAborted(EventBase, frozen=True, kw_only=True):
    """The target world was given up before the commit; the live world trains on."""

    reason: str = ""
    source: str = msgspec.field(name="from", default="")
    to: str = ""
    cause: str = ""
    members: tuple[str, ...] = ()
    joiners: tuple[str, ...] = ()
    leavers: tuple[str, ...] = ()
