"""Workers that train a few tensors and hand boxes of them to each other while they do; threads, or processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.config.schema import StreamSection
from liver_slurm.engine.replica import Groups, Hyperparameters, Replica, TrainedBox
from liver_slurm.parallel.shared_memory import share
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Move, Piece
from liver_slurm.transfer.box_index import ReplicaIndex
from liver_slurm.transfer.local_copies import LocalCopies
from liver_slurm.transfer.one_sided.connect import Connected, Opening, SharedMoves, connect
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.transfer.transfer import Transfer

CPU = torch.device("cpu")
GROUPS = (GroupSpec(), GroupSpec(wd_mult=0.0), GroupSpec(lr_mult=0.5))


@dataclass(frozen=True)
class Tensor:
    """One tensor of the run: who has it, and who is to have it."""

    name: str
    shape: tuple[int, ...]
    source: int
    target: int
    group: int | None = 0
    """Of :data:`GROUPS`; None: it is not trained."""
    rows: int = 0
    """Rows of each move along the first axis; 0: all in one."""
    scattered: bool = False
    """No two of its elements lie side by side where it arrives."""

    @property
    def state(self) -> str:
        """What moves of it is called."""
        return self.name if self.group is None else f"{self.name}@master"

    def moves(self) -> list[Move]:
        """Boxes of rows."""
        rest, rows = self.shape[1:], self.rows or self.shape[0]
        return [
            Move(
                self.state,
                self.source,
                self.target,
                (begin, *[0] * len(rest)),
                (min(rows, self.shape[0] - begin), *rest),
            )
            for begin in range(0, self.shape[0], rows)
        ]

    def place(self) -> torch.Tensor:
        """Storage where it arrives, full of what nobody has sent."""
        room = torch.full((*self.shape, 2) if self.scattered else self.shape, 7.0)
        return room[..., 0] if self.scattered else room


@dataclass
class Trainer:
    """What one worker has of the source world, and of the target world; updates are made with gradients of a seed."""

    me: int
    tensors: Sequence[Tensor]
    seed: int = 0
    parameters: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    fixed: dict[str, torch.Tensor] = field(default_factory=dict)
    arrived: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = torch.Generator().manual_seed(self.seed)
        by_group: dict[int, list[torch.nn.Parameter]] = {}
        for tensor in self.tensors:
            data = torch.randn(tensor.shape, generator=values)
            if tensor.source == self.me and tensor.group is None:
                self.fixed[tensor.name] = data
            elif tensor.source == self.me and tensor.group is not None:
                parameter = self.parameters[tensor.name] = torch.nn.Parameter(data)
                parameter.grad = torch.zeros_like(parameter)
                by_group.setdefault(tensor.group, []).append(parameter)
            if tensor.target == self.me:
                kinds = 1 if tensor.group is None else 3
                self.arrived[tensor.name] = tuple(tensor.place() for _ in range(kinds))
        if not by_group:  # a worker without trained state has an optimizer all the same
            by_group[0] = [torch.nn.Parameter(torch.zeros(1))]
        self._groups = list(by_group)
        self.optimizer = torch.optim.AdamW(
            [{"params": some, "weight_decay": 0.1 / (group + 1)} for group, some in by_group.items()],
            lr=3e-3,
            foreach=False,
        )
        for some in by_group.values():
            for parameter in some:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
                parameter.grad = torch.zeros_like(parameter)
        state = [*self.fixed.values(), *(view for name in self.parameters for view in self.state(name))]
        state += [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        share([view.untyped_storage() for view in state], keep=True)
        self.made = 0
        self._before_zeroing: Callable[[], None] = lambda: None
        self._gradients = torch.Generator().manual_seed(self.seed + 1)

    def state(self, name: str) -> tuple[torch.Tensor, ...]:
        """Master and moments; or what is not trained."""
        if name in self.fixed:
            return (self.fixed[name],)
        state = self.optimizer.state[self.parameters[name]]
        return self.parameters[name].detach(), state["exp_avg"], state["exp_avg_sq"]

    def replicas(self) -> tuple[Replica, Replica]:
        """Of the source world, and of the target world."""
        source, target = Replica([], []), Replica([], [])
        for tensor in self.tensors:
            piece = Piece(tensor.name, (0,) * len(tensor.shape), tensor.shape)
            for replica, here, state in (
                (source, tensor.source == self.me, self.state),
                (target, tensor.target == self.me, self.arrived.__getitem__),
            ):
                if here and tensor.group is None:
                    replica.fixed.append((piece, state(tensor.name)[0]))  # type: ignore[attr-defined]
                elif here and tensor.group is not None:
                    box = TrainedBox(piece, state(tensor.name), self._gradient(tensor), GROUPS[tensor.group])
                    replica.trained.append(box)  # type: ignore[attr-defined]
        return source, target

    def _gradient(self, tensor: Tensor) -> Callable[[], torch.Tensor]:
        if tensor.name not in self.parameters:  # nobody looks at it where the tensor arrives
            return lambda: torch.zeros(tensor.shape)
        return lambda: self.parameters[tensor.name].grad  # type: ignore[return-value]

    # ---- liver_slurm.engine.replica.Updates

    def adam_step(self) -> int:
        return self.made if self.parameters else -1

    def groups(self) -> Groups:
        return {
            GROUPS[number]: Hyperparameters(group["lr"], group["weight_decay"], *group["betas"], group["eps"])
            for number, group in zip(self._groups, self.optimizer.param_groups, strict=True)
        }

    def watch(
        self, before: Callable[[], None], after: Callable[[], None], zeroing: Callable[[], None] | None
    ) -> Callable[[], None]:
        if zeroing is not None:
            self._before_zeroing = zeroing
        handles = [
            self.optimizer.register_step_pre_hook(lambda *_: before()),
            self.optimizer.register_step_post_hook(lambda *_: after()),
        ]

        def stop() -> None:
            if zeroing is not None:
                self._before_zeroing = lambda: None
            for handle in handles:
                handle.remove()

        return stop

    def compute_gradients(self) -> None:
        """What a backward pass does, in the storage that gradients have."""
        self._before_zeroing()
        for parameter in self.parameters.values():
            assert parameter.grad is not None
            parameter.grad.copy_(torch.randn(parameter.shape, generator=self._gradients))

    def update(self) -> None:
        """Make a step with an update."""
        self.compute_gradients()
        self.optimizer.step()
        self.made += 1

    def skip(self) -> None:
        """Make a step whose gradient is not finite: there is no update."""
        self._before_zeroing()
        for parameter in self.parameters.values():
            assert parameter.grad is not None
            parameter.grad.fill_(torch.nan)


def stream(**changes: Any) -> StreamSection:
    """A section [stream] for workers of one machine."""
    return StreamSection(**{"mode": "overlap", "interface": "lo", "staging_bytes": 1 << 16, **changes})


@dataclass(frozen=True)
class Joined:
    """One worker's end."""

    trainer: Trainer
    connected: Connected
    transfer: Transfer


def join(
    store: Any,
    trainer: Trainer,
    workers: int,
    section: StreamSection,
    on_received: Callable[[Sequence[SharedBox]], None] = lambda _: None,
) -> Joined:
    """Prepare one worker's transfer, as the worker does; all must."""
    peers = Peers([str(n) for n in range(workers)], list(range(workers)), list(range(workers)), list(range(workers)))
    me = trainer.me
    moves = [move for tensor in trainer.tensors for move in tensor.moves()]
    mine = RankMoves(
        [move for move in moves if move.source_rank == me != move.target_rank],
        [move for move in moves if move.target_rank == me != move.source_rank],
        [move for move in moves if move.source_rank == me == move.target_rank],
    )
    held, needed = map(ReplicaIndex, trainer.replicas())
    opening = Opening(store, "lab", me, workers, section, CPU)
    groups = [SharedMoves.of(RankMoves(mine.sends, mine.receives, []), peers, held, lambda: needed)]
    connected = connect(opening, groups, trainer, on_received)
    transfer = Transfer(connected.pull, LocalCopies(mine.copies, held, needed, CPU), trainer, True)
    return Joined(trainer, connected, transfer)


# ---- in a process of its own ---------------------------------------------------------------------------------------

_joined: list[Joined] = []


def join_there(port: int, me: int, tensors: Sequence[Tensor], workers: int, seed: int, transport: str = "auto") -> None:
    """Be a worker of a lab whose store listens on this port."""
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    _joined.append(join(store, Trainer(me, tensors, seed), workers, stream(transport=transport)))


def act(*names: str) -> None:
    """Call methods of this process's transfer, "update" being its trainer's."""
    (joined,) = _joined
    for name in names:
        if name == "update":
            joined.trainer.update()
        elif name == "open":
            joined.transfer.open(last=True)
        else:
            getattr(joined.transfer, name)()


def die_in_update() -> None:
    """Be killed while an update is made."""
    (joined,) = _joined
    joined.trainer.optimizer.register_step_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    joined.trainer.update()
