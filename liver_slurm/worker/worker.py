"""The training process: trains in the live world, and goes from world to world when the coordinator says so."""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from liver_slurm.config.rundir import RunDir
from liver_slurm.config.schema import JobConfig
from liver_slurm.control.messages import (
    Abort,
    CheckpointWritten,
    Commit,
    Failed,
    Finished,
    Heartbeat,
    Leaving,
    Prepare,
    Prepared,
    Register,
    Streamed,
    WorldEntered,
)
from liver_slurm.errors import LiverError
from liver_slurm.megatron.checkpoint import Checkpointer, Written
from liver_slurm.megatron.data.prepare import resolve_data
from liver_slurm.megatron.data.samples import Samples, open_samples
from liver_slurm.megatron.groups import make_live
from liver_slurm.megatron.rank_state import RankState
from liver_slurm.megatron.step import StepResult, train_step
from liver_slurm.observe.metrics import MetricsWriter, StepMetrics
from liver_slurm.state.layout import Layout
from liver_slurm.worker import faultpoints
from liver_slurm.worker.agenda import Agenda, Due, Enter, Leave
from liver_slurm.worker.companion import Companion
from liver_slurm.worker.target import Target, prepare
from liver_slurm.worker.warm_up import warm_up
from liver_slurm.world.c10d import set_default_group
from liver_slurm.world.world import Membership

log = logging.getLogger(__name__)

_RECENT = 20
"""Steps that step time and the gap between steps are taken from."""


@dataclass(frozen=True)
class Identity:
    """Who a worker is."""

    run_id: str
    name: str
    role: Any
    host: str
    job_id: str
    device: torch.device


class Worker:
    """One worker of a run. :meth:`run` is the training thread; the other methods are called by the companion."""

    def __init__(self, identity: Identity, config: JobConfig, run_dir: RunDir, signals: int) -> None:
        self.name = identity.name
        self._identity, self._config, self._run_dir = identity, config, run_dir
        self._samples: Samples | None = None
        self._agenda = Agenda()
        self._companion = Companion(
            run_dir, self, self._agenda, signals, config.job.heartbeat, config.job.orphan_timeout
        )
        self._live: RankState | None = None
        self._checkpointer: Checkpointer | None = None
        self._targets: dict[int, Target] = {}
        self._metrics = MetricsWriter(run_dir.metrics)
        self._step = 0
        self._announce = False
        self._orphaned = self._noticed = False
        self._warm = False
        self._results: deque[StepResult] = deque(maxlen=_RECENT)

    # ---- what the companion asks

    def registration(self) -> Register:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        live = self._live
        return Register(
            run_id=self._identity.run_id,
            worker=self.name,
            role=self._identity.role,
            host=self._identity.host,
            pid=os.getpid(),
            job_id=self._identity.job_id,
            device=str(self._identity.device),
            generation=live.world.membership.generation if live else -1,
            rank=live.world.rank if live else -1,
            step=self._step,
            warm=self._warm,
        )

    def heartbeat(self, rejected: int) -> Heartbeat:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        live = self._live
        return Heartbeat(
            worker=self.name,
            generation=live.world.membership.generation if live else -1,
            step=self._step,
            step_seconds=self._step_seconds(),
            warm=self._warm,
            rejected=rejected,
        )

    def in_world(self) -> bool:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        return self._live is not None

    def expects(self, generation: int) -> bool:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        return generation in self._targets

    def noticed(self) -> None:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        self._noticed = True

    def prepare(self, message: Prepare) -> None:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        membership = Membership(message.generation, Layout.parse(message.layout), tuple(message.members))
        target = self._targets[message.generation] = Target(membership)
        threading.Thread(target=self._prepare, args=(target, message), name="prepare", daemon=True).start()

    def give_up(self, generation: int) -> bool:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        waited_for = False
        for number, target in list(self._targets.items()):
            if generation in (-1, number):
                waits = target.give_up()
                waited_for |= waits
                if not waits:
                    del self._targets[number]
        return waited_for

    def orphaned(self) -> None:
        """See :class:`liver_slurm.worker.companion.Subject`."""
        log.warning("no word from a coordinator for %s s", self._config.job.orphan_timeout)
        self._orphaned = True
        if self._live is None:
            self._agenda.leave("the coordinator has gone")

    def _prepare(self, target: Target, message: Prepare) -> None:
        begun = time.perf_counter()
        error = ""
        try:
            faultpoints.reach("prepare", self.name)
            prepare(target, message, self.name, self._config, self._live, self._identity.device)
            faultpoints.reach("prepared", self.name)
        except Exception as caught:
            log.error("generation %d cannot be prepared", message.generation, exc_info=caught)
            error = f"{type(caught).__name__}: {caught}".splitlines()[0]
        if target.prepared():
            seconds = time.perf_counter() - begun
            self._companion.post(
                Prepared(
                    worker=self.name, generation=message.generation, ok=not error, error=error, seconds=seconds
                )
            )

    # ---- the training thread

    def run(self) -> str:
        """Register, warm up, and train until told to leave; returns why it left."""
        self._companion.start()
        try:
            warm_up(self._config, self._identity.device)
            self._samples = open_samples(self._config, resolve_data(self._config, self._run_dir))
            self._warm = True
            self._companion.beat()
            return self._loop()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}".splitlines()[0]
            generation = self._live.world.membership.generation if self._live else -1
            self._companion.post(Failed(worker=self.name, generation=generation, step=self._step, error=error))
            raise
        finally:
            self._companion.close()

    def _loop(self) -> str:
        while True:
            order: Any
            if self._live is None:
                order = self._agenda.idle()
            elif self._step >= self._config.train.steps:
                self._finish()
                order = self._agenda.after_last_step()
            else:
                order = self._agenda.at_boundary(self._step)
            if isinstance(order, Leave):
                self._companion.post(Leaving(worker=self.name, reason=order.reason))
                return order.reason
            if isinstance(order, Enter):
                self._enter(self._targets.pop(order.generation), order.step)
            elif isinstance(order, Due) and order.purpose == "cutover":
                if not self._cut_over(order.generation, order.step):
                    return "not in the new world"
            elif isinstance(order, Due):
                self._checkpoint()
            elif not self._train():
                return "the coordinator has gone"

    def _train(self) -> bool:
        """One step; False: the world has agreed to end because its coordinator is gone."""
        live = self._live
        assert live is not None
        assert self._samples is not None
        if self._announce:
            self._announce = False
            self._companion.post(
                WorldEntered(
                    worker=self.name,
                    generation=live.world.membership.generation,
                    step=self._step,
                    time=time.time(),
                )
            )
        result = train_step(live, self._samples, self._step, stop=self._orphaned)
        self._results.append(result)
        self._step += 1
        if live.world.is_last_stage and live.world.place.tp == 0 and live.world.place.dp == 0:
            metrics = self._as_metrics(live, result)
            self._companion.run_soon(lambda: self._metrics.append(metrics))
        every = self._config.checkpoint.every
        if result.stop or (every and self._step % every == 0 and self._step < self._config.train.steps):
            self._checkpoint()
        if result.stop and self._checkpointer is not None:
            self._checkpointer.wait()
        return not result.stop

    def _as_metrics(self, live: RankState, result: StepResult) -> StepMetrics:
        return StepMetrics(
            step=self._step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            tokens=result.tokens,
            consumed_samples=self._step * self._config.train.global_batch_size,
            generation=live.world.membership.generation,
            layout=str(live.world.layout),
            start=result.start,
            end=result.end,
        )

    def _enter(self, target: Target, step: int) -> None:
        """Make a prepared world the live one, with ``step`` steps completed."""
        assert target.state is not None
        make_live(target.state.world, self._config.train.seed)
        self._live, self._step = target.state, step
        checkpoint = self._config.checkpoint
        self._checkpointer = Checkpointer(
            target.state, self._run_dir.checkpoints, checkpoint.keep, checkpoint.asynchronous
        )
        self._results.clear()
        self._agenda.start_at(step)
        self._announce = True

    def _cut_over(self, generation: int, step: int) -> bool:
        """Stream, vote, and do what the coordinator then says; False: this worker is to exit."""
        target = self._targets.get(generation)
        if target is None or not target.stream():
            return True  # given up just now
        gap = self._gap()
        paused_at = 0.0 if self._live is None else self._results[-1].end if self._results else time.time()
        if self._checkpointer is not None:
            self._checkpointer.wait()
        self._companion.drain()
        adam_step = self._stream(target, step, paused_at, gap)
        verdict = self._agenda.verdict(generation)
        self._targets.pop(generation, None)
        if not isinstance(verdict, Commit):
            target.discard()
            return isinstance(verdict, Abort)
        faultpoints.reach("commit", self.name)
        old = self._live
        if target.state is not None:
            target.state.set_step(adam_step)
            self._enter(target, step)
        elif self._noticed:
            # At once, so that Slurm hands the node over in a second.
            self._companion.post(Leaving(worker=self.name, reason="not in the new world"))
            return False
        else:
            set_default_group(None)
            self._live = self._checkpointer = None
            self._companion.beat()
        threading.Thread(target=_retire, args=(target, old), name="retire", daemon=True).start()
        return True

    def _stream(self, target: Target, step: int, paused_at: float, gap: float) -> int:
        """Run the transfer and vote; returns Adam's step counter."""
        assert target.transfer is not None
        generation = target.membership.generation
        counters = [max(self._live.steps(), default=step)] if self._live is not None else None
        try:
            faultpoints.reach("stream", self.name)
            stats, agreed = target.transfer.run(counters)
            faultpoints.reach("streamed", self.name)
        except LiverError as error:
            log.error("generation %d: %s", generation, error)
            target.transfer.abort()  # closes the connections, so that peers which wait for this worker fail now too
            self._companion.post(
                Streamed(worker=self.name, generation=generation, ok=False, error=str(error).splitlines()[0])
            )
            return step
        self._companion.post(
            Streamed(
                worker=self.name,
                generation=generation,
                ok=True,
                seconds=stats.seconds,
                plan_seconds=target.plan_seconds,
                bytes_sent=stats.bytes_sent,
                bytes_received=stats.bytes_received,
                bytes_local=stats.bytes_local,
                staging_peak_bytes=stats.staging_peak_bytes,
                memory_peak_bytes=_memory_peak(self._identity.device),
                digests_checked=stats.digests_checked,
                paused_at=paused_at,
                gap_seconds=gap,
            )
        )
        return agreed[0]

    def _checkpoint(self) -> None:
        assert self._checkpointer is not None
        assert self._live is not None
        first = self._live.world.rank == 0

        def done(written: Written) -> None:
            if written.error or first:
                self._companion.post(
                    CheckpointWritten(
                        worker=self.name,
                        step=written.step,
                        ok=not written.error,
                        path=str(written.path),
                        error=written.error,
                        seconds=written.seconds,
                        stall_seconds=written.stall_seconds,
                    )
                )

        self._checkpointer.save(self._step, done)

    def _finish(self) -> None:
        assert self._checkpointer is not None
        if self._config.checkpoint.at_end:
            self._checkpoint()
        self._checkpointer.wait()
        self._companion.drain()
        self._companion.post(Finished(worker=self.name, step=self._step))

    def _step_seconds(self) -> float:
        results = list(self._results)
        return (results[-1].end - results[0].start) / len(results) if results else 0.0

    def _gap(self) -> float:
        results = list(self._results)
        gaps = [later.start - earlier.end for earlier, later in itertools.pairwise(results)]
        return statistics.median(gaps) if gaps else 0.0


def _retire(target: Target, old: RankState | None) -> None:
    """Free what the old world had, off the critical path."""
    target.close_transfer()
    if old is not None:
        old.world.destroy()


def _memory_peak(device: torch.device) -> int:
    """Bytes that this process has held at most: on its GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
