"""One rank's share of a world that a user's loop trains: its state as boxes, and its steps one by one."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.base.errors import LiverError, RunIsOver
from liver_slurm.config.batch_sizes import batch_size
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import NO_FLAGS, Evaluation, Reached, Samples, StepFlags, StepResult, TrainingShard
from liver_slurm.engine.own_loop.elastic import Elastic
from liver_slurm.engine.own_loop.loop_thread import NO_STEP, Begin, LoopThread, Word
from liver_slurm.engine.own_loop.state import shard_spec
from liver_slurm.engine.replica import Boxes, Groups, LayerFilter, Replica, every_layer
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import ProcessGroups

log = logging.getLogger(__name__)

Main = Callable[[Elastic], Any]


class _Arrived:
    """Weights that are state of their own have nothing to be derived from."""

    def wait(self) -> None:
        """Return at once."""


class LoopShard:
    """Implements :class:`liver_slurm.engine.api.TrainingShard`, which documents the methods."""

    def __init__(self, main: Main, config: JobConfig, world: ProcessGroups, device: torch.device, fresh: bool) -> None:
        """Call the loop's function, up to its first step.

        Raises:
            RunIsOver: it does not keep to what is asked of it.
            Exception: what it raised.
        """
        self._config, self._world, self._main = config, world, main
        self._building = ExitStack()
        self._thread = LoopThread(self._run)
        self._elastic = Elastic(config, world, device, fresh, self._thread, self._building)
        self._made = 0
        self._reached: Reached = "nothing"
        self._gradients_final: Callable[[int, bool], None] | None = None
        try:
            if self._thread.go_on() != "registered":
                raise RunIsOver(f"{config.train.loop} has returned without a loop over elastic.steps()")
            self.spec = shard_spec(self._elastic.declared.state)
        except BaseException:
            self._thread.end()
            raise
        declared = self._elastic.declared
        self._boxes: Boxes = [(one.piece, one.tensor) for one in declared.state.values() if one.tensor.numel()]
        self._buffers = [buffer.clone() for buffer in declared.buffers]

    def _run(self) -> None:
        """Run the body of the loop's thread."""
        with self._building:
            # Until the world is live, what asks for the default group must not get the one that trains.
            self._building.enter_context(self._world.scope())
            if self._elastic.fresh:
                torch.manual_seed(self._config.train.seed)
            self._main(self._elastic)

    # ---- state

    @property
    def world(self) -> ProcessGroups:
        return self._world

    def boxes(self, chosen: LayerFilter = every_layer) -> Boxes:
        return self._boxes if chosen(-1) else []

    def replica(self, chosen: LayerFilter = every_layer) -> Replica:
        return Replica([], self.boxes(chosen))

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from (view for _, view in self._boxes)
        yield from (gradient for gradient, _ in self._elastic.declared.gradients())

    def moments(self) -> Iterator[tuple[int, torch.Tensor]]:
        return iter(())

    def share_storage(self, live: TrainingShard) -> None:
        """Share nothing: modules, and what wraps them, may hold on to the storage that they were built with."""

    def derive_weights(self, adam_step: int) -> _Arrived:
        self.set_step(adam_step)
        return _Arrived()

    def steps(self) -> set[int]:
        return {self._made}

    def set_step(self, step: int) -> None:
        self._made = step

    # ---- updates: state moves while training stands, so nobody follows them

    def updates(self) -> LoopShard:
        return self

    def adam_step(self) -> int:
        """Return the number of steps made."""
        return self._made

    def groups(self) -> Groups:
        """Return None: nobody replays the updates of an optimizer that may be any."""
        return {}

    def watch(
        self, before: Callable[[], None], after: Callable[[], None], zeroing: Callable[[], None] | None
    ) -> Callable[[], None]:
        raise LiverError('a loop of one\'s own moves in stream.mode = "pause" only')

    # ---- a step

    def make_live(self) -> None:
        set_default_group(self._world.groups["world"])

    computing = False
    """Between two steps anything may be done."""

    def train_step(
        self,
        samples: Samples,
        step: int,
        flags: StepFlags = NO_FLAGS,
        before_update: Callable[[float], None] | None = None,
    ) -> StepResult:
        assert before_update is None, "state moves while training stands, so no update waits for a commit"
        elastic = self._elastic
        for kept, buffer in zip(self._buffers, elastic.declared.buffers, strict=True):
            kept.copy_(buffer)
        self._reached = "nothing"
        self._seed(step)
        start = time.time()
        try:
            updated = self._go_on(Begin(step)) == "gradients"
            if updated:
                self._reached = "gradients"
            lr = elastic.declared.lr  # behind the update it is the next step's
            loss, norm, *raised = self._meet(step, flags)
        except Exception:
            self._swap_buffers()
            raise
        if updated:
            self._update()
        self._made = step + 1
        tokens = batch_size(self._config.train, step) * self._config.train.seq_length
        reported = elastic.current().grad_norm
        return StepResult(
            step=step,
            loss=loss,
            grad_norm=norm**0.5 if reported is None else reported,
            lr=lr,
            tokens=tokens,
            skipped=not updated,
            start=start,
            end=time.time(),
            flags=StepFlags(*(ranks > 0 for ranks in raised)),
        )

    def _go_on(self, order: Begin = NO_STEP) -> Word:
        """Let the loop run until it hands over.

        Raises:
            RunIsOver: it has returned, and there are more steps.
        """
        word = self._thread.go_on(order)
        if word == "ended":
            step, steps = self._elastic.current().number, self._config.train.steps
            if step + 1 < steps:
                raise RunIsOver(
                    f"the loop has returned in step {step} of the run, counted from 0, which has {steps}: it may leave "
                    "elastic.steps() in the last one only; set train.steps for fewer"
                )
            self._settle_at_end()
        return word

    def _settle_at_end(self) -> None:
        """Settle the last step of a loop that has left it; a function may then do with its model what it likes."""
        try:
            self._elastic.settle()
        except RunIsOver as error:
            log.warning("numbers of schedulers and optimizers are saved as of the step before the last: %s", error)

    def _seed(self, step: int) -> None:
        """Seed torch's random numbers by the step and the rank: so they are state of nobody."""
        key = f"{self._config.train.seed}/{step}/{self._world.rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1)

    def _meet(self, step: int, flags: StepFlags) -> list[float]:
        """Reduce loss, squared gradient norm and flags over all ranks; then any rank may begin its update."""
        current, layout = self._elastic.current(), self._world.layout
        if current.loss is None:
            raise RunIsOver(f"step {step} of the loop is over, and step.report(loss) was not called")
        share = len(current.samples) / batch_size(self._config.train, step)
        own = [current.loss * share, 0.0, *map(float, astuple(flags))]
        sums = torch.tensor(own, dtype=torch.float64, device=self._elastic.device)
        if current.grad_norm is None:
            for gradient, replicated in self._elastic.declared.gradients():
                # What several ranks hold is counted by each of them.
                norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
                sums[1] += norm.square() / (layout.size if replicated else layout.dp)
        dist.all_reduce(sums, group=self._world.groups["world"])
        if self._gradients_final is not None:
            self._gradients_final(step, True)
        total: list[float] = sums.tolist()
        return total

    def _update(self) -> None:
        """Let the loop make its update, and run to the end of its step; no peer is needed for it."""
        self._reached = "torn"
        self._go_on()
        self._reached = "nothing"

    def _swap_buffers(self) -> None:
        """Put buffers back as they were before the forward pass, and keep them as they are now; or the other way."""
        for kept, buffer in zip(self._buffers, self._elastic.declared.buffers, strict=True):
            now = buffer.clone()
            buffer.copy_(kept)
            kept.copy_(now)

    def evaluate(self, samples: Samples, first: int, count: int, interrupt: bool) -> Evaluation:
        raise LiverError("a loop of one's own validates by itself")

    def when_gradients_are_final(self, call: Callable[[int, bool], None] | None) -> None:
        self._gradients_final = call

    @property
    def reached(self) -> Reached:
        return self._reached

    def finish_update(self) -> None:
        self._swap_buffers()
        self._update()

    def overwritten(self, updates: int) -> None:
        self._made, self._reached = updates, "torn"

    def clear_caches(self) -> None:
        self._thread.end()
