"""What members of a simulated world keep of each other's state, and say of it when their world is broken."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import Parked
from liver_slurm.reshard.mirrors import needs_mirrors
from liver_slurm.reshard.parity import choose, groups
from liver_slurm.reshard.snapshots import Kept


class Mirrored:
    """Mirrors of one world."""

    def __init__(
        self, config: JobConfig, layout: Layout, members: Sequence[str], hosts: Sequence[str], began: int
    ) -> None:
        """
        Args:
            members, hosts: of the world, by rank.
            began: completed steps that it began with.
        """
        recovery, on_cards = config.recovery, any(component.gpus_per_task for component in config.live.component)
        self._every, self._began = 0, began
        self._kept: dict[str, list[tuple[str, ...]]] = {}
        """Members whose state each of them keeps; empty where no rank holds state that no other one holds."""
        if recovery.mirrors(on_cards) and needs_mirrors(layout, config.train.distributed_optimizer):
            # Memory is not simulated: there is room for copies.
            most = recovery.mirror_group or 1
            choice = choose((), hosts, recovery.mirror_every, most, on_cards, config.train.replayed)
            self._every = choice.every
            for group in groups(hosts, choice.group):
                owners = tuple(members[rank] for rank in group.owners)
                self._kept.setdefault(members[group.keeper], []).append(owners)

    def parked(self, parked: Parked) -> Parked:
        """Add to what a survivor says what it keeps."""
        kept = self._kept.get(parked.worker, ())
        if not self._every:
            return msgspec.structs.replace(parked, mirrors={name: (parked.step, False) for (name,) in kept})
        at = parked.step - (parked.step - self._began) % self._every
        return msgspec.structs.replace(parked, own=[at], kept=[Kept(owners, (at,)) for owners in kept])
