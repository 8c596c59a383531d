"""The step barriers of the live world, as a part of the state that outlives a coordinator; see :mod:`parts`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from liver_slurm.base.frozen import replace
from liver_slurm.base.tally import Tally
from liver_slurm.coordinator.core.records import (
    BegunAnew,
    BoundaryClosed,
    BoundaryConfirmed,
    BoundaryProposed,
    CheckpointWanted,
    Committed,
    MembersLost,
    Record,
)


@dataclass(frozen=True)
class Boundary:
    """A step at which the live world's members agree to stop."""

    number: int
    purpose: Literal["cutover", "checkpoint"]
    step: int
    voters: frozenset[str]
    generation: int = -1
    """Of the target world, for a cutover; of the live one, for a checkpoint."""
    accepted: Tally[None] = field(default_factory=Tally)
    """Voters that have said so."""
    confirmed: bool = False
    request: int = -1
    """Number of the scheduled request that it was proposed for, ahead of the reconfiguration itself; -1: none."""
    reached: float = 0.0
    """When training was first seen to stand there; 0.0: not yet."""

    @property
    def agreed(self) -> bool:
        """Every member has said that it can stop there."""
        return len(self.accepted) == len(self.voters)


@dataclass(frozen=True)
class Barriers:
    """The step barriers: one for a cutover and one for a checkpoint at most."""

    cutover: Boundary | None = None
    checkpoint: Boundary | None = None
    checkpoint_wanted: bool = False
    """One is wanted whose step is not final yet."""
    agreed_checkpoint: Boundary | None = None
    """The last checkpoint's, once it is final; members of the live world may still be on their way to it."""
    not_before: int = 0
    """A member has said that it cannot stop at an earlier step: heartbeats are older news."""
    save_seconds: float | None = None
    """What the last checkpoint took."""
    saved: bool = False
    """One was written while this coordinator looked."""
    saved_step: int = 0
    """Its step; 0: none was."""
    save_error: str = ""
    """Why the last checkpoint could not be written; empty: it was, or there was none."""
    failed_step: int = -1
    """Step of the last checkpoint that could not be written; -1: there was none."""
    next_number: int = 0
    unclosed: frozenset[int] = frozenset()
    """Proposed in this world, and neither final for a checkpoint nor withdrawn."""
    left_open: tuple[int, ...] = ()
    """Those that the last coordinator left unclosed; workers are told to forget them."""

    @property
    def open(self) -> tuple[Boundary, ...]:
        """All of which a member may have to be told."""
        return tuple(one for one in (self.cutover, self.checkpoint, self.agreed_checkpoint) if one is not None)

    def apply(self, record: Record, members: tuple[str, ...]) -> Barriers:
        """Fold one record in.

        Args:
            record: of the journal.
            members: of the world that is live before it.
        """
        if isinstance(record, BoundaryProposed):
            return self._proposed(record, members)
        if isinstance(record, BoundaryConfirmed):
            return self._confirmed(record, members)
        if isinstance(record, BoundaryClosed):
            return self._closed(record.boundary)
        if isinstance(record, CheckpointWanted):
            return replace(self, checkpoint_wanted=record.wanted)
        if isinstance(record, MembersLost):
            return replace(self, cutover=None, checkpoint=None, agreed_checkpoint=None, unclosed=frozenset())
        if isinstance(record, Committed | BegunAnew):
            return self._cleared(record)
        return self

    def _proposed(self, record: BoundaryProposed, members: tuple[str, ...]) -> Barriers:
        noted = replace(self, next_number=record.boundary + 1, unclosed=self.unclosed | {record.boundary})
        if record.step < 0:
            return noted
        proposed = Boundary(
            record.boundary,
            record.purpose,
            record.step,
            frozenset(members),
            generation=record.generation,
            request=record.request,
        )
        return replace(noted, cutover=proposed) if record.purpose == "cutover" else replace(noted, checkpoint=proposed)

    def _confirmed(self, record: BoundaryConfirmed, members: tuple[str, ...]) -> Barriers:
        voters = frozenset(members)
        final = Boundary(
            record.boundary,
            record.purpose,
            record.step,
            voters,
            generation=record.generation,
            accepted=Tally((name, None) for name in members),
            confirmed=True,
        )
        if record.purpose == "cutover":
            # Unclosed: should the coordinator die, nobody is to stop there for an attempt that is over.
            return replace(self, cutover=replace(final, request=self.cutover.request if self.cutover else -1))
        unclosed = self.unclosed - {record.boundary}
        return replace(self, checkpoint=None, agreed_checkpoint=final, checkpoint_wanted=False, unclosed=unclosed)

    def _closed(self, number: int) -> Barriers:
        cutover, checkpoint = (
            None if one is not None and one.number == number else one for one in (self.cutover, self.checkpoint)
        )
        return replace(self, cutover=cutover, checkpoint=checkpoint, unclosed=self.unclosed - {number})

    def _cleared(self, record: Committed | BegunAnew) -> Barriers:
        """Forget the boundaries of the world before; the new one may be held where it begins."""
        wanted = self.checkpoint_wanted and isinstance(record, Committed)
        cleared = replace(self, cutover=None, checkpoint=None, agreed_checkpoint=None, unclosed=frozenset())
        fresh = replace(cleared, checkpoint_wanted=wanted, not_before=0)
        if isinstance(record, BegunAnew) or record.held < 0:
            return fresh
        held = BoundaryProposed(boundary=record.held, step=record.step, purpose="cutover", request=record.held_for)
        return fresh.apply(held, record.members)

    def left(self, requests: Iterable[tuple[int, int]]) -> Barriers:
        """Return what a coordinator that takes over goes on with: what holds training for a request that waits.

        All others are left open, and members are told to forget them.

        Args:
            requests: number and step of each that waits, in their order.
        """
        held, first = self.cutover, next(iter(requests), None)
        if held is None or held.confirmed or held.generation >= 0 or first is None or first[1] != held.step:
            kept = None
        else:
            kept = replace(held, request=first[0])
        open_still = {kept.number} if kept is not None else set()
        return replace(self, cutover=kept, checkpoint=None, left_open=tuple(sorted(self.unclosed - open_still)))
