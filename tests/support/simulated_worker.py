"""One worker of a simulated run: the product's session, orders and directives, and a model of what is below them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impatient import Waits, directives

from liver_slurm.protocol import messages as m
from liver_slurm.protocol.session import Session
from liver_slurm.worker.directives import Due, Enter, Leave, Train
from liver_slurm.worker.orders import Orders

if TYPE_CHECKING:
    from simulated_run import SimulatedRun

ORPHAN_TIMEOUT, GRACE = 60.0, 15.0


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass
class Target:
    """A target world as one worker has it."""

    generation: int
    members: tuple[str, ...]
    involved: tuple[str, ...]
    stage: m.Stage = "preparing"
    given_up: bool = False


class Worker:
    """One worker: the product's session, orders and directives, and a model of what is below them."""

    def __init__(self, run: SimulatedRun, name: str) -> None:
        self.run, self.name = run, name
        self.session, self.directives = Session(), directives()
        self.orders = Orders(self, self.directives)
        self.generation, self.step = -1, 0
        self.targets: dict[int, Target] = {}
        self.doing, self.about = "look", -1
        """What the training thread does, and the step or generation that it is about."""
        self.moved = run.now
        """When it last completed a step, or entered a world."""
        self.gone = self.leaving = self.orphaned_ = self.finished = False
        self.wakes_at = self.contact = run.now
        self.stuck_since: float | None = None
        self.still_until = 0.0
        self.was_still = False
        self.parked_in, self.error = -1, ""
        self.reached: Any = "nothing"
        """The broken world that it has last left the collectives of, and what broke it."""

    @property
    def still(self) -> bool:
        """Whether the process is stopped."""
        return self.run.now < self.still_until

    def stop(self, seconds: float) -> None:
        """The process is stopped for so long."""
        self.still_until, self.was_still = self.run.now + seconds, True
        self.contact += seconds  # its control thread forgives itself

    # -- as a channel

    @property
    def rejected(self) -> int:
        return self.session.rejected

    @rejected.setter
    def rejected(self, value: int) -> None:
        self.session.rejected = value

    @property
    def voted(self) -> int:
        return self.session.voted

    def send(self, message: m.FromWorker) -> None:
        for one in self.session.say(message):
            self.run.post(self.name, "coordinator", one)

    def answer_to(self, order: m.ToWorker) -> m.FromWorker | None:
        return self.session.answer_to(order)

    def receive(self, message: m.ToWorker) -> None:
        if self.gone:
            return
        self.contact = self.run.now
        for_worker, replies = self.session.hear(message)
        for reply in replies:
            self.run.post(self.name, "coordinator", reply)
        if for_worker:
            self.orders.obey(message, self)
        self.look()

    def beat(self) -> None:
        """What the control thread does every second."""
        if self.gone or self.still:
            return
        if self.session.epoch < 0:
            self.run.post(self.name, "coordinator", self.registration())
        else:
            self.send(self.heartbeat(self.rejected, self.session.voted))
        if not self.orphaned_ and self.run.now - self.contact > ORPHAN_TIMEOUT:
            self.orphaned()

    # -- as the port of the control thread

    def registration(self) -> m.Register:
        return m.Register(
            run_id="r", worker=self.name, role="live" if self.name.startswith("live") else "standby", host="h",
            pid=1 + self.run.number_of(self.name), began=self.run.number_of(self.name), job_id=self.name, device="cpu",
            generation=self.generation, step=self.step, warm=True,
        )  # fmt: skip

    def heartbeat(self, rejected: int, voted: int) -> m.Heartbeat:
        targets: dict[int, m.Stage] = {
            number: "voted" if voted == number else target.stage
            for number, target in self.targets.items()
            if not target.given_up or target.stage == "streaming"
        }
        return m.Heartbeat(
            worker=self.name, generation=self.generation, step=self.step, step_seconds=1.0 if self.step else 0.0,
            warm=True, rejected=rejected, targets=targets, boundaries=self.directives.held(),
            since_step=self.run.now - self.moved,
        )  # fmt: skip

    def engaged(self) -> bool:
        return self.generation >= 0 or bool(self.targets)

    def prepare(self, message: m.Prepare) -> None:
        if message.generation in self.targets:
            raise Violation(f"{self.name} prepares generation {message.generation} twice")
        members = tuple(message.members)
        left = [name for name in message.source_members if name not in message.lost]
        involved = tuple(dict.fromkeys((*left, *members)))
        self.targets[message.generation] = Target(message.generation, members, involved)

    def halt(self, message: m.Halt) -> None:
        self.directives.halt(message.generation)
        if self.generation == message.generation and self.doing == "step":
            self._thrown_out()

    def breaks(self, error: str) -> None:
        """A collective of the live world fails."""
        self.error = error
        self.directives.halt(self.generation)
        self._thrown_out()
        self.look()

    def _thrown_out(self) -> None:
        """The training thread leaves a collective of its step: before or behind the one that all gradients meet in."""
        self.doing = "look"
        self.reached = self.run.random.choice(("nothing", "nothing", "gradients", "gradients", "torn"))

    def _park(self) -> Any:
        if self.parked_in != self.generation:
            self.parked_in = self.generation
            parked = m.Parked(
                worker=self.name, generation=self.generation, step=self.step, reached=self.reached, error=self.error
            )
            self.send(parked)
        return self.directives.idle(parked=True)

    def confirmed(self, message: m.ConfirmBoundary) -> None:
        self.run.begun_to_stream.setdefault((self.name, message.generation), 0)
        self.run.begun_to_stream[self.name, message.generation] += 1

    def expects(self, generation: int) -> bool:
        return generation in self.targets

    def give_up(self, generation: int) -> bool:
        waits = False
        for number, target in list(self.targets.items()):
            if generation in (-1, number):
                target.given_up = True
                waits |= target.stage == "streaming"
                if target.stage != "streaming":
                    del self.targets[number]
        if self.doing == "streaming" and generation in (-1, self.about):
            self.vote(self.about, ok=False)
        return waits

    def noticed(self) -> None:
        self.leaving = True

    def orphaned(self) -> None:
        self.orphaned_ = True
        self.directives.alone()
        if self.generation < 0:
            self.directives.leave("the coordinator has gone")
        self.look()

    # -- the training thread

    def look(self) -> None:
        """Go on as far as the training thread would without waiting."""
        try:
            while not self.gone and self.doing in ("look", "verdict"):
                self._verdict() if self.doing == "verdict" else self._follow()
        except Waits:
            return

    def _follow(self) -> None:
        order: Any
        if self.generation < 0:
            order = self.directives.idle()
        elif self.directives.halted:
            order = self._park()
        elif self.step >= self.run.config.train.steps:
            if not self.finished:
                self.finished = True
                self.send(m.Finished(worker=self.name, step=self.step))
            order = self.directives.after_last_step()
        else:
            order = self.directives.at_boundary(self.step)
        if isinstance(order, Leave):
            self.leave(order.reason)
        elif isinstance(order, Enter):
            target = self.targets.pop(order.generation)
            if self.name in target.members:
                self._enter(order.generation, order.step)
            else:
                self.generation = -1
                self.directives.in_no_world()
                self.beat()
        elif isinstance(order, Due) and order.purpose == "cutover":
            target = self.targets.get(order.generation)
            if target is not None and not target.given_up:
                target.stage = "streaming"
                self.doing, self.about = "streaming", order.generation
        elif isinstance(order, Due):
            self.run.worlds.saved(self)
        elif isinstance(order, Train):
            self.doing, self.about = "step", self.step
            self.run.worlds.entered_step(self)

    def _enter(self, generation: int, step: int) -> None:
        self.generation, self.step, self.finished, self.reached = generation, step, False, "nothing"
        self.moved = self.run.now
        self.directives.start_at(step, generation)
        self.send(m.WorldEntered(worker=self.name, generation=generation, step=step, time=self.run.now))

    def _verdict(self) -> None:
        verdict = self.directives.verdict(self.about)
        target = self.targets.pop(self.about)
        self.doing = "look"
        if isinstance(verdict, Leave):
            self.leave(verdict.reason)
        elif isinstance(verdict, m.Commit):
            self._committed(target, verdict)

    def _committed(self, target: Target, commit: m.Commit) -> None:
        if self.name not in target.members:
            self.generation = -1
            self.directives.in_no_world()
            if self.leaving:
                self.leave("not in the new world")
            else:
                self.beat()
            return
        self._enter(target.generation, commit.step)
        if self.run.overlap:
            goes_on = self.directives.begin(commit)
            self.run.worlds.first_step(self, goes_on)
            if goes_on:
                self.doing, self.about = "step", self.step

    def vote(self, generation: int, *, ok: bool) -> None:
        """Vote on a target world, and wait for the verdict."""
        report = m.TransferReport(paused_at=self.run.now if self.generation >= 0 else 0.0, gap_seconds=0.01)
        self.send(m.Streamed(worker=self.name, generation=generation, ok=ok, error="" if ok else "x", report=report))
        self.doing = "verdict"

    def leave(self, reason: str) -> None:
        self.send(m.Leaving(worker=self.name, reason=reason))
        self.gone = True

    def fail(self, error: str) -> None:
        self.send(m.Failed(worker=self.name, generation=self.generation, step=self.step, error=error))
        self.gone = True

    def notice(self) -> None:
        """Slurm wants the node back, and kills when the grace time is up."""
        self.send(m.Notice(worker=self.name, reason="SIGTERM", time=self.run.now))
        self.run.later(GRACE, lambda: self.run.kill(self.name))
        if self.engaged():
            self.noticed()
        else:
            self.leave("SIGTERM")
