"""The training process: trains in the live world, and goes from world to world when the coordinator says so."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.data.prepare import resolve_data
from liver_slurm.engine.data.samples import open_samples
from liver_slurm.parallel.groups import Membership
from liver_slurm.parallel.layout import Layout
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
from liver_slurm.worker.directives import Directives, Due, Enter, Leave
from liver_slurm.worker.target_world import TargetWorld, prepare
from liver_slurm.worker.train_loop import TrainLoop
from liver_slurm.worker.warm_up import warm_up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Who a worker is."""

    run_id: str
    name: str
    role: Any
    host: str
    job_id: str
    restarts: int
    device: torch.device


class Worker:
    """One worker of a run. :meth:`run` is the training thread; the other methods are called by the companion."""

    def __init__(self, identity: Identity, config: JobConfig, run_dir: RunDir, signals: int) -> None:
        self.name = identity.name
        self._identity, self._config, self._run_dir = identity, config, run_dir
        self._agenda = Directives()
        self._companion = ControlThread(
            run_dir, self, self._agenda, signals, config.job.heartbeat, config.job.orphan_timeout
        )
        self._training = TrainLoop(identity.name, config, run_dir, self._companion)
        self._cutover = Cutover(identity.name, identity.device, self._training, self._agenda, self._companion)
        self._targets: dict[int, TargetWorld] = {}
        self._prepared: TargetWorld | None = None
        """The newest whose state is to leave while training runs, once it does."""
        self._watching: LiveTransfer | None = None
        """What watches the live world's updates; training's thread only."""
        self._orphaned = False
        self._warm = False

    # ---- what the companion asks

    def registration(self) -> Register:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        live = self._training.live
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
            rank=live.world.rank if live else -1,
            step=self._training.step,
            warm=self._warm,
        )

    def heartbeat(self, rejected: int) -> Heartbeat:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        return Heartbeat(
            worker=self.name,
            generation=self._training.generation,
            step=self._training.step,
            step_seconds=self._training.step_seconds(),
            warm=self._warm,
            rejected=rejected,
        )

    def engaged(self) -> bool:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        return self._training.live is not None or bool(self._targets)

    def expects(self, generation: int) -> bool:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        return generation in self._targets

    def noticed(self) -> None:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        self._cutover.noticed()

    def prepare(self, message: Prepare) -> None:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        membership = Membership(message.generation, Layout.parse(message.layout), tuple(message.members))
        target = self._targets[message.generation] = TargetWorld(membership)
        threading.Thread(target=self._prepare, args=(target, message), name="prepare", daemon=True).start()

    def confirmed(self, message: ConfirmBoundary) -> None:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        target = self._targets.get(message.generation)
        if message.begin >= 0 and target is not None and isinstance(target.transfer, LiveTransfer):
            target.transfer.start()
            target.leaves_from = message.begin
            # The word may come when that step has begun already; while training stands, it is not opened any more.
            if self._training.step < message.step:
                self._let_state_leave(target)

    def give_up(self, generation: int) -> bool:
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
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
        """See :class:`liver_slurm.worker.control_thread.Subject`."""
        log.warning("no word from a coordinator for %s s", self._config.job.orphan_timeout)
        self._orphaned = True
        self._agenda.alone()
        if self._training.live is None:
            self._agenda.leave("the coordinator has gone")

    def _prepare(self, target: TargetWorld, message: Prepare) -> None:
        begun = time.perf_counter()
        error = ""
        try:
            fault_injection.reach("prepare", self.name)
            prepare(target, message, self.name, self._config, self._training.live, self._identity.device)
            fault_injection.reach("prepared", self.name)
        except Exception as caught:
            log.error("generation %d cannot be prepared", message.generation, exc_info=caught)
            error = f"{type(caught).__name__}: {caught}".splitlines()[0]
        if target.prepared():
            if isinstance(target.transfer, LiveTransfer):
                self._prepared = target
            self._companion.post(
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
        """Register, warm up, and train until told to leave; returns why it left."""
        self._companion.start()
        try:
            requirements.check(self._config.stream)
            warm_up(self._config, self._identity.device)
            self._training.samples = open_samples(self._config, resolve_data(self._config, self._run_dir))
            self._warm = True
            self._companion.beat()
            return self._loop()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}".splitlines()[0]
            training = self._training
            self._companion.post(
                Failed(worker=self.name, generation=training.generation, step=training.step, error=error)
            )
            raise
        finally:
            self._companion.close()

    def _loop(self) -> str:
        training = self._training
        while True:
            order: Any
            if training.live is None:
                order = self._agenda.idle()
            elif training.step >= self._config.train.steps:
                self._finish()
                order = self._agenda.after_last_step()
            else:
                order = self._agenda.at_boundary(training.step)
            if isinstance(order, Leave):
                self._companion.post(Leaving(worker=self.name, reason=order.reason))
                return order.reason
            if isinstance(order, Enter):
                self._enter_first(order.generation, order.step)
            elif isinstance(order, Due) and order.purpose == "cutover":
                if not self._cut_over(order.generation, order.step):
                    return "not in the new world"
            elif isinstance(order, Due):
                training.checkpoint()
            elif not self._train():
                return "the coordinator has gone"

    def _train(self) -> bool:
        """One step; False: the world has agreed to end because its coordinator is gone."""
        live, training = self._training.live, self._training
        assert live is not None
        self._watch_updates()
        result = training.train(live, training.step, self._orphaned)
        training.completed(result)
        return not result.word.stop

    def _watch_updates(self) -> None:
        """Have the updates watched for what is prepared, and for nothing that is given up.

        Only this thread may put hooks on the optimizer, or take them off: it is the one that runs them.
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
        """State may leave in the step that training is in, if it is time; from either thread."""
        overlap, training = target.transfer, self._training
        if training.live is not None and isinstance(overlap, LiveTransfer) and 0 <= target.leaves_from <= training.step:
            fault_injection.reach("overlap", self.name)
            overlap.open()

    def _enter_first(self, generation: int, step: int) -> None:
        """A world without a source is committed: start in it."""
        target = self._targets.pop(generation)
        assert target.state is not None
        self._training.make_live(target.state)
        self._training.enter(target.state, step)
        self._agenda.start_at(step)
        self._companion.post(WorldEntered(worker=self.name, generation=generation, step=step, time=time.time()))

    def _cut_over(self, generation: int, step: int) -> bool:
        """Go to the new world, or not, as the coordinator says; False: this worker is to exit."""
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
            self._companion.beat()
        return outcome is not Outcome.EXIT

    def _finish(self) -> None:
        self._training.last_checkpoint()
        self._companion.drain()
        self._companion.post(Finished(worker=self.name, step=self._training.step))
