"""A worker: trains in the live world, and moves from world to world as the coordinator directs."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import (
    ConfirmBoundary,
    Failed,
    Finished,
    Heartbeat,
    Leaving,
    Prepare,
    Prepared,
    Register,
    WorldEntered,
)
from liver_slurm.rundir.paths import RunDir
from liver_slurm.transfer.live_transfer import LiveTransfer
from liver_slurm.transfer.transports import requirements
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.cutover import Cutover, Outcome
from liver_slurm.worker.device import flops_meter
from liver_slurm.worker.directives import Directives, Due, Enter, Leave, Train
from liver_slurm.worker.target_world import Preparation, TargetWorld, prepare
from liver_slurm.worker.train_loop import TrainLoop
from liver_slurm.worker.warm_up import warm_up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Identity of a worker."""

    run_id: str
    name: str
    role: Any
    host: str
    job_id: str
    restarts: int
    device: torch.device


class Worker:
    """One worker of a run.

    :meth:`run` is the training thread; the control thread calls the other methods, which are those of
    :class:`liver_slurm.worker.control_thread.WorkerPort`.
    """

    def __init__(self, identity: Identity, config: JobConfig, engine: Engine, run_dir: RunDir, signals: int) -> None:
        """
        Args:
            signals: read end of the pipe in which notices come; see :mod:`liver_slurm.worker.signals`.
        """
        self.name = identity.name
        self._identity, self._config, self._engine, self._run_dir = identity, config, engine, run_dir
        self._directives = Directives()
        self._control = ControlThread(
            run_dir, self, self._directives, signals, config.job.heartbeat, config.job.orphan_timeout
        )
        self._loop = TrainLoop(identity.name, config, run_dir, self._control)
        self._cutover = Cutover(identity.name, identity.device, self._loop, self._directives, self._control)
        self._targets: dict[int, TargetWorld] = {}
        self._prepared: TargetWorld | None = None
        """The newest target world whose state leaves while training runs."""
        self._watching: LiveTransfer | None = None
        """The transfer that has hooks on the live world's optimizer; touched by the training thread only."""
        self._orphaned = False
        self._warm = False

    # ---- called by the control thread

    def registration(self) -> Register:
        live = self._loop.live
        return Register(
            run_id=self._identity.run_id,
            worker=self.name,
            role=self._identity.role,
            host=self._identity.host,
            pid=os.getpid(),
            job_id=self._identity.job_id,
            restarts=self._identity.restarts,
            device=str(self._identity.device),
            generation=live.world.membership.generation if live else -1,
            step=self._loop.step,
            warm=self._warm,
        )

    def heartbeat(self, rejected: int) -> Heartbeat:
        return Heartbeat(
            worker=self.name,
            generation=self._loop.generation,
            step=self._loop.step,
            step_seconds=self._loop.step_seconds(),
            warm=self._warm,
            rejected=rejected,
        )

    def engaged(self) -> bool:
        return self._loop.live is not None or bool(self._targets)

    def expects(self, generation: int) -> bool:
        return generation in self._targets

    def noticed(self) -> None:
        self._cutover.noticed()

    def prepare(self, message: Prepare) -> None:
        membership = Membership(message.generation, Layout.parse(message.layout), tuple(message.members))
        target = self._targets[message.generation] = TargetWorld(membership)
        threading.Thread(target=self._prepare, args=(target, message), name="prepare", daemon=True).start()

    def confirmed(self, message: ConfirmBoundary) -> None:
        target = self._targets.get(message.generation)
        if message.begin >= 0 and target is not None and isinstance(target.transfer, LiveTransfer):
            target.transfer.start()
            target.leaves_from, target.cutover_step = message.begin, message.step
            # This may come when that step has begun already; while training stands still, it is not opened any more.
            if self._loop.step < message.step:
                self._let_state_leave(target)

    def give_up(self, generation: int) -> bool:
        waited_for = False
        for number, target in list(self._targets.items()):
            if generation in (-1, number):
                waits = target.give_up()
                waited_for |= waits
                if not waits:
                    del self._targets[number]
        if self._prepared is not None and self._prepared.given_up:
            self._prepared = None
        return waited_for

    def orphaned(self) -> None:
        log.warning("no word from a coordinator for %s s", self._config.job.orphan_timeout)
        self._orphaned = True
        self._directives.alone()
        if self._loop.live is None:
            self._directives.leave("the coordinator has gone")

    def _prepare(self, target: TargetWorld, message: Prepare) -> None:
        begun = time.perf_counter()
        error = ""
        try:
            fault_injection.reach("prepare", self.name)
            prepare(
                target,
                Preparation(message, self.name, self._config, self._engine, self._loop.live, self._identity.device),
            )
            fault_injection.reach("prepared", self.name)
        except Exception as caught:
            log.error("generation %d cannot be prepared", message.generation, exc_info=caught)
            error = f"{type(caught).__name__}: {caught}".splitlines()[0]
        if target.prepared():
            if isinstance(target.transfer, LiveTransfer):
                self._prepared = target
            self._control.post(
                Prepared(
                    worker=self.name,
                    generation=message.generation,
                    ok=not error,
                    error=error,
                    seconds=time.perf_counter() - begun,
                    state_bytes=target.transfer.state_bytes if isinstance(target.transfer, LiveTransfer) else 0,
                    rate=target.rate,
                )
            )

    # ---- the training thread

    def run(self) -> str:
        """Register, warm up, and train until told to leave; returns the reason to leave."""
        self._control.start()
        try:
            requirements.check(self._config.stream)
            warm_up(self._config, self._engine, self._identity.device)
            self._loop.samples = self._engine.open_samples(self._config, self._run_dir)
            self._loop.meter = flops_meter(self._config, self._engine, self._identity.device)
            self._warm = True
            self._control.beat()
            return self._follow_directives()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}".splitlines()[0]
            loop = self._loop
            self._control.post(Failed(worker=self.name, generation=loop.generation, step=loop.step, error=error))
            raise
        finally:
            self._control.close()

    def _follow_directives(self) -> str:
        """Train, cut over and write checkpoints as directed; returns the reason to leave."""
        loop = self._loop
        while True:
            directive: Train | Leave | Enter | Due
            if loop.live is None:
                directive = self._directives.idle()
            elif loop.step >= self._config.train.steps:
                self._finish()
                directive = self._directives.after_last_step()
            else:
                directive = self._directives.at_boundary(loop.step)
            if isinstance(directive, Leave):
                self._control.post(Leaving(worker=self.name, reason=directive.reason))
                return directive.reason
            if isinstance(directive, Enter):
                self._enter_first(directive.generation, directive.step)
            elif isinstance(directive, Due) and directive.purpose == "cutover":
                if not self._cut_over(directive.generation, directive.step):
                    return "not in the new world"
            elif isinstance(directive, Due):
                loop.checkpoint()
            elif not self._train():
                return "the coordinator has gone"

    def _train(self) -> bool:
        """Train one step; False: the world has agreed to end because its coordinator is gone."""
        live, loop = self._loop.live, self._loop
        assert live is not None
        self._watch_updates()
        result = loop.train(live, loop.step, self._orphaned)
        loop.completed(result)
        return not result.flags.stop

    def _watch_updates(self) -> None:
        """Install optimizer hooks for a prepared transfer, and remove those of a transfer that is given up.

        Only this thread may do so, because it is the one that runs them.
        """
        target = self._prepared
        overlap = target.transfer if target is not None and not target.given_up else None
        overlap = overlap if isinstance(overlap, LiveTransfer) else None
        if overlap is not self._watching:
            if self._watching is not None:
                self._watching.detach()
            if overlap is not None:
                overlap.attach()
            self._watching = overlap
        if overlap is not None and target is not None:
            self._let_state_leave(target)

    def _let_state_leave(self, target: TargetWorld) -> None:
        """Open the transfer for the step that training is in, if that is late enough; called by either thread."""
        overlap, loop = target.transfer, self._loop
        if loop.live is not None and isinstance(overlap, LiveTransfer) and 0 <= target.leaves_from <= loop.step:
            fault_injection.reach("overlap", self.name)
            overlap.open(last=loop.step == target.cutover_step - 1)

    def _enter_first(self, generation: int, step: int) -> None:
        """Start in a committed world without a source."""
        target = self._targets.pop(generation)
        assert target.state is not None
        self._loop.make_live(target.state)
        self._loop.enter(target.state, step)
        self._directives.start_at(step)
        self._control.post(WorldEntered(worker=self.name, generation=generation, step=step, time=time.time()))

    def _cut_over(self, generation: int, step: int) -> bool:
        """Cut over to a target world, or stay, as the coordinator decides; False: this worker is to exit."""
        target = self._targets.get(generation)
        if target is None or not target.stream():
            return True  # given up just now
        outcome = self._cutover.run(target, step, self._orphaned)
        self._targets.pop(generation, None)
        if self._watching is not None:
            self._watching.detach()
            self._watching = None
        if self._prepared is target:
            self._prepared = None
        if outcome is Outcome.LEFT:
            self._control.beat()
        return outcome is not Outcome.EXIT

    def _finish(self) -> None:
        self._loop.last_checkpoint()
        self._control.drain()
        self._control.post(Finished(worker=self.name, step=self._loop.step))
