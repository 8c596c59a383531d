"""A worker: trains in the live world, and moves from world to world as the coordinator directs."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch

from liver_slurm.base.errors import RunIsOver, TransferError, first_line
from liver_slurm.base.faults import started
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import (
    ConfirmBoundary,
    Failed,
    Finished,
    Halt,
    Heartbeat,
    Leaving,
    Prepare,
    Prepared,
    Register,
    WorldEntered,
)
from liver_slurm.protocol.rendezvous_client import RendezvousStore
from liver_slurm.rundir.paths import RunDir
from liver_slurm.transfer import requirements
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.transfer.mirror.proof import Proofs
from liver_slurm.transfer.reception import strangers
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.cutover import Cutover, Outcome, retire_in_background
from liver_slurm.worker.device import flops_meter
from liver_slurm.worker.directives import Directives, Due, Enter, Halted, Leave, Train
from liver_slurm.worker.early_transfer import EarlyTransfer
from liver_slurm.worker.preparation import Preparation
from liver_slurm.worker.survivor import Survivor
from liver_slurm.worker.target_world import TargetWorld, prepare
from liver_slurm.worker.train_loop import TrainLoop
from liver_slurm.worker.validation import Validation
from liver_slurm.worker.warm_up import warm_up

log = logging.getLogger(__name__)

_LAST_LINES, _ALL_LINES = 5.0, 60.0
"""Seconds that metrics may take to be written when this worker leaves, and at the end of the run."""


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
    :class:`liver_slurm.worker.orders.WorkerPort`.
    """

    def __init__(self, identity: Identity, config: JobConfig, engine: Engine, run_dir: RunDir, signals: int) -> None:
        """
        Args:
            signals: read end of the pipe in which notices come; see :mod:`liver_slurm.worker.signals`.
        """
        self.name = identity.name
        self._identity, self._config, self._engine, self._run_dir = identity, config, engine, run_dir
        self._directives = Directives()
        self._rooms, self._proofs = Rooms(identity.device if identity.device.type == "cuda" else None), Proofs()
        job = config.job
        self._control = ControlThread(run_dir, self, self._directives, signals, job.heartbeat, job.orphan_timeout)
        self._loop = TrainLoop(identity.name, config, run_dir, self._control)
        self._cutover = Cutover(identity.name, identity.device, self._loop, self._directives, self._control)
        self._survivor = Survivor(identity.name, self._loop, self._directives, self._control)
        self._targets: dict[int, TargetWorld] = {}
        self._early = EarlyTransfer(identity.name, self._loop)
        self._orphaned = self._warm = False

    # ---- called by the control thread

    def registration(self) -> Register:
        live = self._loop.live
        return Register(
            run_id=self._identity.run_id,
            worker=self.name,
            role=self._identity.role,
            host=self._identity.host,
            pid=os.getpid(),
            began=started(os.getpid()),
            job_id=self._identity.job_id,
            restarts=self._identity.restarts,
            device=str(self._identity.device),
            generation=live.world.membership.generation if live else -1,
            step=self._loop.step,
            warm=self._warm,
        )

    def heartbeat(self, rejected: int, voted: int) -> Heartbeat:
        targets, mirrors = list(self._targets.items()), self._loop.mirrors  # training takes them out
        return Heartbeat(
            worker=self.name,
            generation=self._loop.generation,
            step=self._loop.step,
            step_seconds=self._loop.step_seconds(),
            warm=self._warm,
            rejected=rejected + strangers.total(),
            targets={number: target.stage(voted) for number, target in targets if not target.given_up or target.waits},
            boundaries=self._directives.held(),
            files_waiting=self._loop.files[0],
            files_error=self._loop.files[1],
            in_vain=self._loop.in_vain,
            mirror=mirrors.word if mirrors is not None else "none",
            mirror_way=mirrors.way if mirrors is not None else "",
            mirror_bytes=mirrors.nbytes if mirrors is not None else 0,
            validating=self._loop.validation.under_way if self._loop.validation is not None else None,
            mirror_proofs=self._proofs.counts,
            mirror_differed=self._proofs.last,
            since_step=self._loop.since_step,
            computing=self._loop.computing,
            copying=self._loop.checkpoints.copying,
        )

    def engaged(self) -> bool:
        return self._loop.live is not None or bool(self._targets)

    def expects(self, generation: int) -> bool:
        return generation in self._targets

    def noticed(self) -> None:
        self._cutover.noticed()

    def halt(self, message: Halt) -> None:
        self._survivor.halt(message, self._targets.get(message.generation))

    def prepare(self, message: Prepare) -> None:
        membership = Membership(message.generation, Layout.parse(message.layout), tuple(message.members))
        target = TargetWorld(
            membership, recovers=message.standing, scribe=message.scribe == self.name, back=message.back
        )
        self._targets[message.generation] = target
        threading.Thread(target=self._prepare, args=(target, message), name="prepare", daemon=True).start()

    def confirmed(self, message: ConfirmBoundary) -> None:
        target = self._targets.get(message.generation)
        if target is not None:
            self._early.confirmed(target, message.begin, message.step)

    def give_up(self, generation: int) -> bool:
        waited_for = False
        for number, target in list(self._targets.items()):
            if generation in (-1, number):
                waits = target.give_up()
                self._early.forget(target)
                waited_for |= waits
                if not waits:
                    del self._targets[number]
        return waited_for

    def orphaned(self) -> None:
        log.warning("no word from a coordinator for %s s", self._config.job.orphan_timeout)
        self._orphaned = True
        self._directives.alone()
        if self._loop.live is None:
            self._directives.leave("the coordinator has gone")

    # ---- the thread that prepares

    def _prepare(self, target: TargetWorld, message: Prepare) -> None:
        begun = time.perf_counter()
        error = "the thread that prepares has ended without a word"
        try:
            self._build(target, message)
            error = ""
        except (Exception, SystemExit) as caught:  # a thread's edge, and code of the user's may call sys.exit()
            log.error("generation %d cannot be prepared", message.generation, exc_info=caught)
            error = first_line(caught)
            target.discard()  # what is built of it is of no use, whenever word comes that it is given up
        finally:
            self._answer(target, message.generation, error, time.perf_counter() - begun)

    def _build(self, target: TargetWorld, message: Prepare) -> None:
        fault_injection.reach("prepare", self.name)
        preparation = Preparation(
            message=message,
            worker=self.name,
            config=self._config,
            engine=self._engine,
            live=self._loop.live,
            device=self._identity.device,
            open_store=self._open_store,
            rooms=self._rooms,
            mirrors=self._loop.mirrors,
            proofs=self._proofs,
        )
        prepare(target, preparation)
        fault_injection.reach("prepared", self.name)

    def _answer(self, target: TargetWorld, generation: int, error: str, seconds: float) -> None:
        """Report that a target world is built, or why not, unless it has been given up meanwhile."""
        if not target.prepared():
            return
        overlap = target.overlap if not error else None
        if overlap is not None:
            self._early.offer(target)
        self._control.post(
            Prepared(
                worker=self.name,
                generation=generation,
                ok=not error,
                error=error,
                seconds=seconds,
                state_bytes=overlap.state_bytes if overlap is not None else 0,
                rate=target.rate,
            )
        )

    def _open_store(self, message: Prepare, patience: timedelta) -> RendezvousStore:
        return RendezvousStore(self._run_dir, message.store_host, message.store_port, patience)

    # ---- the training thread

    @property
    def refused(self) -> bool:
        """The coordinator has turned this worker away."""
        return self._directives.refused

    def run(self) -> str:
        """Register, warm up, and train until told to leave; returns the reason to leave."""
        self._control.start()
        try:
            requirements.check(self._config.stream)
            warm_up(self._config, self._engine, self._identity.device)
            self._loop.train_on(self._engine.open_samples(self._config, self._run_dir))
            held_out = self._engine.open_validation(self._config, self._run_dir)
            if held_out is not None:
                self._loop.validation = Validation(
                    self._config, held_out, self._run_dir.validations, self._control.beat
                )
            self._loop.meter = flops_meter(self._config, self._engine, self._identity.device)
            self._warm = True
            self._control.beat()
            return self._follow_directives()
        except (Exception, SystemExit) as caught:  # code of the user's may call sys.exit()
            loop = self._loop
            last_word = Failed(
                worker=self.name,
                generation=loop.generation,
                step=loop.step,
                error=first_line(caught),
                for_good=isinstance(caught, RunIsOver),
            )
            self._control.post(last_word)
            raise
        finally:
            self._loop.flush(_LAST_LINES)
            self._control.close()

    def _follow_directives(self) -> str:
        """Train, cut over and write checkpoints as directed; returns the reason to leave."""
        loop = self._loop
        while True:
            directive: Train | Leave | Enter | Due | Halted | None
            if loop.live is None:
                directive = self._directives.idle()
            elif self._directives.halted:
                directive = self._park()
            elif loop.validates():
                directive = self._validate()
            elif loop.at_end:
                self._finish()
                directive = self._directives.after_last_step()
            else:
                directive = self._directives.at_boundary(loop.step)
            if isinstance(directive, Leave):
                if loop.at_end:
                    loop.checkpoints.wait_for_copies()
                self._control.post(Leaving(worker=self.name, reason=directive.reason))
                return directive.reason
            if isinstance(directive, Enter):
                self._enter_first(directive.generation, directive.step)
            elif isinstance(directive, Due) and directive.purpose == "cutover":
                if not self._cut_over(directive.generation, directive.step):
                    return "not in the new world"
            elif isinstance(directive, Due):
                loop.checkpoints.request(loop.step)
            elif isinstance(directive, Train) and not self._train():
                return "the coordinator has gone"

    def _train(self) -> bool:
        """Train one step; False: the world has agreed to end because its coordinator is gone."""
        live, loop = self._loop.live, self._loop
        assert live is not None
        self._early.watch_updates()
        try:
            result = loop.train(live, loop.step, self._orphaned)
        except RuntimeError as error:
            self._survivor.failed(error)
            return True
        loop.completed(result)
        return not result.flags.stop

    def _validate(self) -> Leave | Due | Halted | None:
        """Validate; returns what interrupts it, None: nothing, or nothing any more."""
        loop = self._loop
        try:
            if loop.validate(partial(self._directives.calls_at, loop.step)):
                return None
        except RuntimeError as error:
            self._survivor.failed(error)
            return None
        directive = self._directives.at_boundary(loop.step, begins=False)
        return None if isinstance(directive, Train) else directive

    def _park(self) -> Leave | Enter | Due:
        """Wait for the world after a broken one."""
        self._early.watch_nothing()
        return self._survivor.park()

    def _enter_first(self, generation: int, step: int) -> None:
        """Start in a committed world without a source: the first one, or one from a checkpoint after a broken one."""
        target = self._targets.pop(generation)
        self._loop.make_live(target.state)
        target.close_transfer()
        if target.state is None:
            self._directives.in_no_world()
            retire_in_background(target, self._loop.leave(), self._identity.device)
            self._control.beat()
            return
        left = self._loop.enter(target.state, step, target.mirrors, continues=False)
        self._directives.start_at(step, generation)
        if left.shard is not None:
            retire_in_background(target, left, self._identity.device)
        self._control.post(WorldEntered(worker=self.name, generation=generation, step=step, time=time.time()))

    def _cut_over(self, generation: int, step: int) -> bool:
        """Cut over to a target world, or stay, as the coordinator decides; False: this worker is to exit."""
        target = self._targets.get(generation)
        if target is None or not target.stream():
            return True  # given up just now
        try:
            outcome = self._recover(target, step) or self._cutover.run(target, step, self._orphaned)
        except RuntimeError as error:
            if self._loop.generation != generation:
                raise
            self._survivor.failed(error)
            outcome = Outcome.ENTERED
        self._targets.pop(generation, None)
        self._early.watch_nothing()
        self._early.forget(target)
        if outcome is Outcome.LEFT:
            self._control.beat()
        return outcome is not Outcome.EXIT

    def _recover(self, target: TargetWorld, step: int) -> Outcome | None:
        """Catch up with the other survivors of a broken world; None: cut over now."""
        if target.recovers:
            try:
                self._survivor.catch_up(step, target.scribe, target.back)
            except TransferError as error:  # this worker lives on: what it keeps of others is of use
                return self._cutover.refuse(target, error)
        return None

    def _finish(self) -> None:
        self._loop.checkpoints.last(self._loop.step)
        if self._loop.checkpoints.copying:
            self._control.beat()  # the coordinator is to know it before the run is over
        self._loop.flush(_ALL_LINES)
        self._control.drain()
        reason = self._loop.at_end if self._loop.step < self._config.train.steps else ""
        self._control.post(Finished(worker=self.name, step=self._loop.step, reason=reason))
