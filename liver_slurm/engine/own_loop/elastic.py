"""``liver_slurm.Elastic``: what a training loop of the user's own is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from liver_slurm.base.errors import RunIsOver
from liver_slurm.config.batch_sizes import batch_size, samples_before
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.own_loop.declared import Declared
from liver_slurm.engine.own_loop.loop_thread import LoopThread
from liver_slurm.engine.own_loop.state import Sharded, local
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.parallel.layout import Layout


class Step:
    """One step of the run, as one rank sees it."""

    def __init__(self, number: int, samples: range, batch: int, ranks: int, before_update: Callable[[], None]) -> None:
        self.number = number
        """Counted from 0, over the whole run."""
        self.samples = samples
        """Numbers of this rank's samples, counted over the whole run: its part of the step's global batch."""
        self.weight = len(samples) * ranks / batch
        """What makes a mean over ranks (as DDP and FSDP2 reduce gradients) the mean over the global batch: this rank's
        samples, over what each would have if shares were even. Multiply the loss with it before ``backward()``."""
        self.loss: float | None = None
        self.grad_norm: float | None = None
        self._before_update = before_update

    def report(self, loss: float | torch.Tensor, grad_norm: float | torch.Tensor | None = None) -> None:
        """Say what the step's loss is; call it before the optimizer's step.

        Args:
            loss: mean over this rank's samples.
            grad_norm: of the global batch, the same on every rank. Default: the norm of what the optimizers are given.
        """
        self.loss = _number(loss)
        self.grad_norm = _number(grad_norm) if grad_norm is not None else None

    def before_update(self) -> None:
        """Meet all other ranks before state is changed; an optimizer that is registered does so by itself.

        For a loop that changes plain tensors by its own hand.
        """
        self._before_update()


def _number(value: float | torch.Tensor) -> float:
    return float(local(value)) if isinstance(value, torch.Tensor) else float(value)


class Elastic:
    """One world as a loop sees it; the loop's function is called once in each world, with another one of these."""

    def __init__(
        self,
        config: JobConfig,
        world: ProcessGroups,
        device: torch.device,
        fresh: bool,
        thread: LoopThread,
        building: ExitStack,
    ) -> None:
        """Wait for a function to be called with it.

        Args:
            building: what holds until the world is live; it is closed in the loop's thread.
        """
        self.job = config
        """The whole job."""
        self.device = device
        """The CPU, or the one GPU of this worker."""
        self.fresh = fresh
        """Values matter: it is the first world of a run, or one that starts from a checkpoint. Else state arrives from
        the world before, whatever values it is built with."""
        self._world, self._thread, self._building = world, thread, building
        self._begun = False
        self._current: Step | None = None
        self._met, self._settled = False, True
        self._stepped: set[str] = set()
        self.declared = Declared(device)

    # ---- the world

    @property
    def rank(self) -> int:
        """This worker's number in the world."""
        return self._world.rank

    @property
    def layout(self) -> Layout:
        """``dp`` replicas, each of which divides its state among ``tp`` ranks."""
        return self._world.layout

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.layout.size

    @property
    def shard(self) -> tuple[int, int]:
        """Which part of divided state this rank has, and of how many: what :class:`Sharded` may depend on."""
        return self._world.place.tp, self.layout.tp

    @property
    def group(self) -> Any:
        """Process group of all ranks, for ``DistributedDataParallel`` and collectives of the loop's own."""
        return self._world.groups["world"]

    @property
    def shard_group(self) -> Any:
        """Process group of the ranks of one replica."""
        return self._world.groups["tp"]

    @property
    def mesh(self) -> DeviceMesh:
        """Device mesh for ``fully_shard``: ``("shard",)``, or with several replicas ``("replicate", "shard")``."""
        groups, layout, kind = self._world.groups, self.layout, self.device.type
        if layout.dp == 1:
            return DeviceMesh.from_group(groups["tp"], kind, mesh_dim_names=("shard",))
        ranks = torch.from_numpy(layout.rank_matrix().reshape(layout.dp, layout.tp).copy()).int()
        return DeviceMesh.from_group(
            [groups["dp"], groups["tp"]], kind, mesh=ranks, mesh_dim_names=("replicate", "shard")
        )

    # ---- state

    def register(self, **state: Any) -> None:
        """Declare state by name, before the first step: modules, optimizers, tensors, and objects with a state_dict.

        A module's parameters and persistent buffers are named after its own paths, an optimizer's state after its
        parameters. A plain tensor is the same on every rank, unless :meth:`sharded` says otherwise.

        Raises:
            RunIsOver: something of it cannot be state.
        """
        if self._begun:
            raise RunIsOver("elastic.register is called after the first step; declare everything before it")
        for name, value in state.items():
            self.declared.add(name, value)

    @staticmethod
    def sharded(tensor: torch.Tensor, shape: tuple[int, ...], offset: tuple[int, ...]) -> Sharded:
        """Declare that a plain tensor is the part at ``offset`` of a global one of ``shape``; give it to ``register``.

        The global shape is the same in every layout, and the part depends on :attr:`shard` alone.
        """
        return Sharded(tensor, tuple(shape), tuple(offset))

    def leave_out(self, *tensors: torch.Tensor) -> None:
        """Declare that tensors which are attributes of modules are no state, as they are the same in every world."""
        self.declared.leave_out(tensors)

    # ---- steps

    def steps(self) -> Iterator[Step]:
        """Yield the steps that this world trains, from the one that the world before has not made.

        The loop ends after the last step of the run. Where the world is over before, the call of its function is
        unwound from here, and what stands behind the loop does not run.
        """
        if self._begun:
            raise RunIsOver("elastic.steps() is called twice; a loop's function trains in one loop")
        self._begun = True
        self.declared.complete(self.layout)
        for name, optimizer in self.declared.optimizers.items():
            optimizer.register_step_pre_hook(partial(self._before_optimizer, name))
        order = self._thread.tell("registered")
        self._building.close()
        self.declared.unpack()
        while True:
            self._current, self._met, self._settled = self._step(order.step), False, False
            self._stepped.clear()
            yield self._current
            self.settle()
            if order.step + 1 >= self.job.train.steps:
                return
            order = self._thread.tell("completed")

    def settle(self) -> None:
        """Bring state up to date with the step that is over, once; see :meth:`Declared.settle`."""
        if not self._settled:
            self.declared.settle()
            self._settled = True

    def current(self) -> Step:
        """Return the step that runs, or ran last."""
        assert self._current is not None, "no step has begun"
        return self._current

    def _step(self, number: int) -> Step:
        train = self.job.train
        batch, before = batch_size(train, number), samples_before(train, number)
        base, extra = divmod(batch // train.micro_batch_size, self.size)
        first = self.rank * base + min(self.rank, extra)
        last = first + base + (self.rank < extra)
        samples = range(before + first * train.micro_batch_size, before + last * train.micro_batch_size)
        return Step(number, samples, batch, self.size, self._before_update)

    def _before_optimizer(self, name: str, optimizer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Hold up an optimizer's step, as its hook, until the gradients are final."""
        if any(callable(one) for one in (*arguments, options.get("closure"))):
            raise RunIsOver(
                f"{type(optimizer).__name__}.step is called with a closure, which would make gradients when all ranks "
                "take them to be final; make them before, and call step()"
            )
        if name in self._stepped:
            raise RunIsOver(
                f"{name}.step() is called twice in step {self.current().number} of the loop; elastic.steps() gives one "
                "update each: accumulate gradients before it"
            )
        self._stepped.add(name)
        self._before_update()

    def _before_update(self) -> None:
        """Wait until all ranks' gradients are final; once a step, however many optimizers there are."""
        step = self.current()
        if self._met:
            return
        if step.loss is None:
            raise RunIsOver(f"step {step.number} of the loop changes state before step.report(loss) is called")
        self._met = True
        self._thread.tell("gradients")
