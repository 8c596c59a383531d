"""Muon: the momentum of a whole matrix, orthogonalised, is its update (Jordan et al. 2024); AdamW does the rest.

As megatron-core's ``TensorParallelMuon`` has it, whose package is not on the usual index: Newton-Schulz steps with five
sets of coefficients, updates scaled by the square root of the longer side, weight decay apart from them, and queries,
keys and values as three matrices. A matrix that is cut by tensor parallelism is gathered, and each of its ranks does
the same with it. Each layout gathers it in the same order, so that layouts differ by no more than their gradients do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from liver_slurm.base.errors import PlanError
from liver_slurm.config.train import TrainSection
from liver_slurm.engine.megatron.rounded import hyperparameters
from liver_slurm.engine.update_rules import Updated, update
from liver_slurm.parallel.c10d import gather_into
from liver_slurm.reshard.shard_spec import ParamSpec
from liver_slurm.reshard.tensors import ADAM, MUON_MOMENTUM

_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Of one step after the other, and again from the first; megatron-core's ``quintic``."""
_EPSILON = 1e-7
"""The least norm that a matrix is divided by: one of zeros stays so."""


def orthogonalised(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """Return about the nearest matrix whose singular values are all one; fp32, [rows, columns].

    On a GPU products are of bf16, as in megatron-core by default.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp_min(_EPSILON)
    if x.is_cuda:
        x = x.bfloat16()
    for step in range(steps):
        a, b, c = _COEFFICIENTS[step % len(_COEFFICIENTS)]
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)


class _Box(NamedTuple):
    """Where a part of a shard lies in the whole matrix."""

    start: int
    """First element in the flat shard."""
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def place(self, ranks: int, whole: tuple[int, ...]) -> tuple[slice, ...]:
        """Return it of the same part of the shard that is so many ranks further on."""
        offsets = (
            at + ranks * size * (size != all_) for at, size, all_ in zip(self.offset, self.shape, whole, strict=True)
        )
        return tuple(slice(at, at + size) for at, size in zip(offsets, self.shape, strict=True))


class Matrix(NamedTuple):
    """A matrix of which a rank holds all, or a part."""

    shape: tuple[int, ...]
    boxes: tuple[_Box, ...]
    group: Any
    """Of the ranks that it is cut over, in its order; None: it is not cut."""
    heads: tuple[int, ...]
    """Rows of queries, of keys and of values in each query group; empty: it is one matrix."""

    @classmethod
    def of(cls, param: ParamSpec, group: Any, heads: tuple[int, ...]) -> Matrix:
        """Make it from what a rank's model says of it.

        Args:
            param: of the rank's model.
            group: tensor parallel ranks, of experts their own.
            heads: as in the result, of a matrix that has these.

        Raises:
            PlanError: it is cut in a way that is not known here.
        """
        (shape, *others) = {box.global_shape[-2:] for box in param.boxes}
        boxes = tuple(_Box(box.start, box.offset[-2:], box.shape[-2:]) for box in param.boxes)
        ranks = math.prod(shape) // param.size
        if others or ranks * param.size != math.prod(shape) or ranks not in (1, group.size()):
            raise PlanError(
                f"{param.name}: muon knows matrices that are whole on a rank, or cut by tensor parallelism, and this "
                'one is neither; set train.optimizer = "adam"'
            )
        split = param.boxes[0].tensor.endswith("linear_qkv.weight") and shape[0] % sum(heads) == 0
        return cls(shape, boxes, group if ranks > 1 else None, heads if split else ())

    def whole(self, shard: torch.Tensor) -> torch.Tensor:
        """Return the matrix, of each rank's shard of it; where it is cut all ranks must call this."""
        if self.group is None:
            return shard
        shards = shard.new_empty(self.group.size() * shard.numel())
        gather_into(shards, shard.contiguous().view(-1), self.group)
        whole = shard.new_empty(self.shape)
        for rank, flat in enumerate(shards.view(self.group.size(), -1)):
            for box in self.boxes:
                part = flat[box.start : box.start + math.prod(box.shape)]
                whole[box.place(rank - self.group.rank(), self.shape)] = part.view(box.shape)
        return whole

    def shard(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's part, one box after the other, in storage of its own if the matrix is cut."""
        if self.group is None:
            return whole
        return torch.cat([whole[box.place(0, self.shape)].reshape(-1) for box in self.boxes])

    def each(self, whole: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return what ``work`` makes of the matrix, or of the matrices that it is made up of, each by itself."""
        if not self.heads:
            return work(whole)
        columns = whole.shape[1]
        kinds = whole.view(-1, sum(self.heads), columns).split(self.heads, dim=1)
        made = [work(kind.reshape(-1, columns)).reshape(kind.shape) for kind in kinds]
        return torch.cat(made, dim=1).view(whole.shape)


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Muon of matrices, and AdamW of what else there is, in groups as megatron-core makes them for AdamW."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], matrices: Mapping[torch.Tensor, Matrix], train: TrainSection
    ) -> None:
        """
        Args:
            groups: with ``lr``, ``weight_decay``, ``betas`` and ``eps``.
            matrices: those of the parameters that are matrices.
            train: has the settings.
        """
        super().__init__(groups, {})
        self.matrices, self._train = matrices, train
        self._gathered: dict[torch.Tensor, torch.Tensor] = {}
        """Updates of matrices that are cut, until they are made."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def gather(self) -> None:
        """Compute the next updates of matrices that are cut, which all ranks must do together; state stays as it is.

        So :meth:`step` needs no peer: a rank whose peers are lost can make an update that others have made.
        """
        cut = [matrix for group in self.param_groups for matrix in self._of(group) if self.matrices[matrix].group]
        self._gathered = {parameter: self._update(parameter) for parameter in cut}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: None = None) -> None:
        """Make an update; gradients are final, and :meth:`gather` has been called with them."""
        del closure
        for group in self.param_groups:
            others = (each for each in group["params"] if each not in self.matrices)
            update(list(map(self._held, others)), group["step"], hyperparameters(group), ADAM)
            for parameter in self._of(group):
                cut = self.matrices[parameter].group is not None
                change = self._gathered.pop(parameter) if cut else self._update(parameter)
                self.state[parameter][MUON_MOMENTUM].lerp_(parameter.grad, 1 - self._train.muon_momentum)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=group["lr"])
            group["step"] += 1

    def _of(self, group: Mapping[str, Any]) -> Iterator[torch.Tensor]:
        return (parameter for parameter in group["params"] if parameter in self.matrices)

    def _update(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return what is subtracted from a parameter, but for the learning rate."""
        train, matrix, gradient = self._train, self.matrices[parameter], parameter.grad
        assert gradient is not None, "megatron's buffer has a gradient of every parameter"
        momentum = self.state[parameter][MUON_MOMENTUM].lerp(gradient, 1 - train.muon_momentum)
        if train.muon_nesterov:
            momentum = gradient.lerp(momentum, train.muon_momentum)

        def scaled(some: torch.Tensor) -> torch.Tensor:
            return orthogonalised(some, train.muon_ns_steps).mul_(train.muon_scale * math.sqrt(max(some.shape)))

        return matrix.shard(matrix.each(matrix.whole(momentum), scaled)).view(parameter.shape)

    def _held(self, parameter: torch.Tensor) -> Updated:
        kept = self.state[parameter]
        assert parameter.grad is not None, "megatron's buffer has a gradient of every parameter"
        return parameter.detach(), *(kept[name] for name in ADAM), parameter.grad
