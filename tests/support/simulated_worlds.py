"""What workers of a simulated run do together: steps, checkpoints, preparations, transfers; what must hold of them.

A step is trained when all members of one world are in it, and nobody is in another step of that world. A checkpoint
is one when all have written their parts of it. Whoever waits for a process that is gone notices after a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulated_worker import Target, Violation, Worker

from liver_slurm.coordinator.core.records import Committed
from liver_slurm.protocol import messages as m

if TYPE_CHECKING:
    from simulated_run import SimulatedRun

COLLECTIVE_ENDS = 3.0
"""Seconds after which a member that waits in a collective for a process that is gone notices."""


class SimulatedWorlds:
    """The worlds of a run."""

    def __init__(self, run: SimulatedRun) -> None:
        self.run = run
        self.committed: dict[int, Committed] = {}
        self.members: dict[int, list[Worker]] = {}
        """The processes that each committed world is made of; others may have their names later."""
        self.trained: dict[int, int] = {}
        """Generation in which each step was trained, by the steps before it."""
        self.checkpoints: set[int] = set()
        """Steps of those that are whole."""
        self.saves: dict[tuple[int, int], set[str]] = {}
        self.first: dict[int, bool] = {}

    def commit(self, record: Committed) -> None:
        """Note a commit record."""
        self.committed[record.generation] = record
        self.members[record.generation] = [self.run.workers[name] for name in record.members]

    def roll_back(self, step: int) -> None:
        """Steps after ``step`` are trained again."""
        self.trained = {before: generation for before, generation in self.trained.items() if before < step}

    def newest_checkpoint(self, at_most: int | None) -> int | None:
        """Step of the newest checkpoint that does not lie ahead; None: there is none."""
        return max((step for step in self.checkpoints if at_most is None or step <= at_most), default=None)

    def entered_step(self, worker: Worker) -> None:
        saves = self.saves.get((worker.generation, worker.step))
        if any(one.gone for one in self.members.get(worker.generation, ())):
            return  # the step is never completed, and neither is the checkpoint
        if saves is not None and worker.name not in saves:
            raise Violation(f"{worker.name} trains on at {worker.step}, where {sorted(saves)} write a checkpoint")

    def saved(self, worker: Worker) -> None:
        """A worker writes its part of a checkpoint; all of its world must."""
        key = (worker.generation, worker.step)
        self.saves.setdefault(key, set()).add(worker.name)
        ahead = [
            one.name for one in self.run.workers.values()
            if one.generation == worker.generation and one.name not in self.saves[key]
            and (one.step > worker.step or (one.doing == "step" and one.about >= worker.step))
        ]  # fmt: skip
        if ahead:
            raise Violation(f"{worker.name} writes a checkpoint at {worker.step}; {ahead} have passed it")
        members = {member.name for member in self.members[worker.generation]}
        if self.saves[key] == members:
            self.checkpoints.add(worker.step)
            self.run.workers[self.members[worker.generation][0].name].send(
                m.CheckpointWritten(worker=worker.name, step=worker.step, ok=True, path=f"step-{worker.step}")
            )

    def first_step(self, worker: Worker, goes_on: bool) -> None:
        """A member is in the first step of a new world: all make its update, or none."""
        if self.first.setdefault(worker.generation, goes_on) != goes_on:
            raise Violation(
                f"in the first step of generation {worker.generation} {worker.name} does not what others do"
            )

    def go_on(self) -> None:
        """Steps, preparations and transfers that all who belong to them are in come to an end."""
        alive = [worker for worker in self.run.workers.values() if not (worker.gone or worker.still)]
        stepped: set[int] = set()
        for worker in alive:
            if worker.generation not in stepped and self._step(worker):
                stepped.add(worker.generation)
        for worker in alive:
            for target in list(worker.targets.values()):
                self._prepare(worker, target)
            if worker.doing == "streaming" and not worker.gone:
                self._stream(worker)

    def _step(self, worker: Worker) -> bool:
        """Train the step that a worker is in, if all members are; returns whether they are."""
        if worker.doing != "step" or worker.gone:
            worker.stuck_since = None
            return False
        members = self.members[worker.generation]
        inside = [one for one in members if one.generation == worker.generation and one.doing == "step"]
        if {one.about for one in inside} != {worker.about}:
            raise Violation(f"steps {[(one.name, one.about) for one in inside]} in one world")
        if any(one.still for one in members):
            return False  # nobody's connection is closed, and nothing comes over it
        if len(inside) == len(members) and not any(one.gone for one in members):
            known = worker.generation if self._is_left_behind(worker.generation) else self.trained.get(worker.about)
            if known is None:
                self.trained[worker.about] = worker.generation
            elif known != worker.generation:
                raise Violation(f"step {worker.about} is trained in two worlds")
            stop = any(one.orphaned_ for one in members)
            for one in members:
                one.step, one.doing, one.stuck_since, one.moved = one.about + 1, "look", None, self.run.now
                if stop:
                    one.leave("the coordinator has gone")
            for one in members:
                one.look()
            return True
        if any(one.gone or one.generation > worker.generation for one in members):  # it has closed its connections
            worker.stuck_since = worker.stuck_since if worker.stuck_since is not None else self.run.now
            if self.run.now > worker.stuck_since + COLLECTIVE_ENDS:
                worker.breaks("a peer is gone")
        return False

    def _is_left_behind(self, generation: int) -> bool:
        """Whether a world was given up as lost: one of a single worker that was stopped trains on until it hears so.

        Nobody sees these steps: the metrics are another file by then.
        """
        return any(one.cause == "loss" and one.source_generation == generation for one in self.committed.values())

    def _prepare(self, worker: Worker, target: Target) -> None:
        if target.stage != "preparing" or worker.gone:
            return
        peers = [self.run.workers[name] for name in target.involved]
        if worker not in peers:  # it has lost its world, and is in the next one no member
            target.stage = "prepared"
            worker.send(m.Prepared(worker=worker.name, generation=target.generation, ok=True))
        elif all(not (peer.gone or peer.still) and target.generation in peer.targets for peer in peers):
            for peer in peers:
                mine = peer.targets[target.generation]
                if mine.stage == "preparing" and not mine.given_up:
                    mine.stage = "prepared"
                    peer.send(m.Prepared(worker=peer.name, generation=target.generation, ok=True))

    def _stream(self, worker: Worker) -> None:
        target = worker.targets[worker.about]
        peers = [self.run.workers[name] for name in target.involved]
        there = [peer for peer in peers if peer.doing == "streaming" and peer.about == worker.about]
        if any(peer.still for peer in peers):
            return
        if len(there) == len(peers) and not any(peer.gone for peer in peers):
            steps = {peer.step for peer in peers if peer.generation >= 0}
            if len(steps) > 1:
                raise Violation(f"a cutover at {steps}")
            for peer in peers:
                peer.vote(target.generation, ok=True)
            for peer in peers:
                peer.look()
        elif any(peer.gone or (peer.doing == "verdict" and peer.about == worker.about) for peer in peers):
            worker.vote(target.generation, ok=False)  # the connection has ended
            worker.look()
