"""An engine in plain PyTorch: the least that implements liver_slurm.engine.api, for tests that need no megatron.

A model of an embedding and square layers, fp32, AdamW; data parallel only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.api import NO_FLAGS, Evaluation, Samples, StepFlags, StepResult, TrainingShard
from liver_slurm.engine.replica import Boxes, Groups, Hyperparameters, LayerFilter, Replica, TrainedBox, every_layer
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import BoxSpec, GroupSpec, ParamSpec, ShardSpec
from liver_slurm.reshard.tensors import Piece
from liver_slurm.rundir.paths import RunDir

WORDS, WIDTH, LAYERS, LENGTH = 11, 8, 3, 6
GROUP = GroupSpec()


def job(**changes: Any) -> JobConfig:
    """A job whose model is the one here, whatever [model] says of its inside."""
    return JobConfig(
        model=ModelSection(num_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=1, vocab_size=WORDS),
        train=TrainSection(
            steps=20,
            seq_length=LENGTH,
            micro_batch_size=1,
            global_batch_size=4,
            lr=1e-2,
            precision="fp32",
            distributed_optimizer=False,
        ),
        **changes,
    )


def tiny_spec() -> ShardSpec:
    """What every rank holds."""
    embedding = BoxSpec("embedding", (WORDS, WIDTH), (0, 0), (WORDS, WIDTH), 0)
    layers = [
        BoxSpec("layer", (LAYERS, WIDTH, WIDTH), (layer, 0, 0), (1, WIDTH, WIDTH), 0, layered=True)
        for layer in range(LAYERS)
    ]
    boxes = {"embedding": embedding, **{f"layer.{number}": box for number, box in enumerate(layers)}}
    return ShardSpec(tuple(ParamSpec(name, box.size, "float32", (box,), GROUP) for name, box in boxes.items()))


class Counting:
    """Samples of the run's sample numbers."""

    def __len__(self) -> int:
        return 1 << 20

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        return (np.arange(first, first + count)[:, None] * 7 + np.arange(LENGTH + 1)) % WORDS


class _Arrived:
    def wait(self) -> None:
        """Nothing is under way: a weight is its own master."""


class TinyShard:
    """Implements :class:`liver_slurm.engine.api.TrainingShard`."""

    def __init__(self, config: JobConfig, world: ProcessGroups, fresh: bool) -> None:
        self._config, self.world, self.spec = config, world, tiny_spec()
        values = torch.Generator().manual_seed(config.train.seed)
        self.parameters = {
            param.name: torch.nn.Parameter(
                torch.randn(self._shape(param), generator=values) / 4
                if fresh
                else torch.full(self._shape(param), torch.nan)
            )
            for param in self.spec.params
        }
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=config.train.lr)
        for parameter in self.parameters.values():
            moments = [torch.zeros_like(parameter) for _ in range(2)]
            if not fresh:
                for moment in moments:
                    moment.untyped_storage().resize_(0)
            self.optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": moments[0],
                "exp_avg_sq": moments[1],
            }
        self._before_zeroing: Callable[[], None] = lambda: None
        self._gradients_final: Callable[[int, bool], None] | None = None

    @staticmethod
    def _shape(param: ParamSpec) -> tuple[int, ...]:
        return param.boxes[0].shape

    def _held(self, chosen: LayerFilter) -> Iterator[tuple[BoxSpec, torch.nn.Parameter, torch.Tensor, torch.Tensor]]:
        for param in self.spec.params:
            if chosen(param.layer):
                parameter = self.parameters[param.name]
                state = self.optimizer.state[parameter]
                yield param.boxes[0], parameter, _view(state["exp_avg"]), _view(state["exp_avg_sq"])

    def boxes(self, chosen: LayerFilter = every_layer) -> Boxes:
        found: list[tuple[Piece, torch.Tensor]] = []
        for box, parameter, exp_avg, exp_avg_sq in self._held(chosen):
            for name, view in (("", parameter.detach()), ("@exp_avg", exp_avg), ("@exp_avg_sq", exp_avg_sq)):
                found.append((Piece(box.tensor + name, box.offset, box.shape), view))
        return found

    def replica(self, chosen: LayerFilter = every_layer) -> Replica:
        def gradient(parameter: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
            return lambda: parameter.grad  # type: ignore[return-value]

        trained = [
            TrainedBox(
                Piece(box.tensor, box.offset, box.shape),
                (parameter.detach(), exp_avg, exp_avg_sq),
                gradient(parameter),
                GROUP,
            )
            for box, parameter, exp_avg, exp_avg_sq in self._held(chosen)
        ]
        return Replica(trained, [])

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from self.parameters.values()
        for _, moment in self.moments():
            yield moment

    def moments(self) -> Iterator[tuple[int, torch.Tensor]]:
        for param in self.spec.params:
            state = self.optimizer.state[self.parameters[param.name]]
            yield param.layer, state["exp_avg"]
            yield param.layer, state["exp_avg_sq"]

    def updates(self) -> TinyShard:
        return self

    def adam_step(self) -> int:
        return max(self.steps())

    def groups(self) -> Groups:
        (group,) = self.optimizer.param_groups
        return {GROUP: Hyperparameters(group["lr"], group["weight_decay"], *group["betas"], group["eps"])}

    def watch(
        self, before: Callable[[], None], after: Callable[[], None], zeroing: Callable[[], None] | None
    ) -> Callable[[], None]:
        handles = [
            self.optimizer.register_step_pre_hook(lambda *_: before()),
            self.optimizer.register_step_post_hook(lambda *_: after()),
        ]
        if zeroing is not None:
            self._before_zeroing = zeroing

        def stop() -> None:
            if zeroing is not None:
                self._before_zeroing = lambda: None
            for handle in handles:
                handle.remove()

        return stop

    def steps(self) -> set[int]:
        return {int(self.optimizer.state[parameter]["step"]) for parameter in self.parameters.values()}

    def set_step(self, step: int) -> None:
        for parameter in self.parameters.values():
            self.optimizer.state[parameter]["step"] = torch.tensor(float(step))

    def share_storage(self, live: TrainingShard) -> None:
        """Share nothing: copies are what tests want to see."""

    def derive_weights(self, adam_step: int) -> _Arrived:
        self.set_step(adam_step)
        return _Arrived()

    def make_live(self) -> None:
        set_default_group(self.world.groups["world"])

    computing = False

    def train_step(
        self,
        samples: Samples,
        step: int,
        flags: StepFlags = NO_FLAGS,
        before_update: Callable[[float], None] | None = None,
    ) -> StepResult:
        self._before_zeroing()
        self.optimizer.zero_grad(set_to_none=False)
        start, train = time.time(), self._config.train
        share = train.global_batch_size // self.world.layout.dp
        first = step * train.global_batch_size + self.world.place.dp * share
        tokens = torch.from_numpy(samples.batch(first, share))
        loss = self._loss(tokens)
        loss.backward()
        for parameter in self.parameters.values():
            dist.all_reduce(parameter.grad, group=self.world.groups["dp"])
            assert parameter.grad is not None
            parameter.grad /= self.world.layout.dp
        if before_update is not None:
            before_update(start)
        if self._gradients_final is not None:
            self._gradients_final(step, True)
        self.optimizer.step()
        return StepResult(step, float(loss), 0.0, train.lr, tokens.numel(), False, start, time.time(), flags)

    def evaluate(self, samples: Samples, first: int, count: int, interrupt: bool) -> Evaluation:
        share = count // self.world.layout.dp
        tokens = torch.from_numpy(samples.batch(first + self.world.place.dp * share, share))
        sums = torch.tensor([float(self._loss(tokens, "sum")), tokens[:, 1:].numel(), interrupt], dtype=torch.float64)
        dist.all_reduce(sums, group=self.world.groups["world"])
        loss_sum, labels, interrupted = sums.tolist()
        return Evaluation(loss_sum, int(labels), interrupted > 0)

    def _loss(self, tokens: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        hidden = self.parameters["embedding"][tokens[:, :-1]]
        for layer in range(LAYERS):
            hidden = hidden + torch.tanh(hidden @ self.parameters[f"layer.{layer}"][0])
        logits = hidden @ self.parameters["embedding"].T
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction=reduction)

    def when_gradients_are_final(self, call: Callable[[int, bool], None] | None) -> None:
        self._gradients_final = call

    def clear_caches(self) -> None:
        """There are none."""


class TinyEngine:
    """Implements :class:`liver_slurm.engine.api.Engine`."""

    def build(self, config: JobConfig, world: ProcessGroups, device: torch.device, *, fresh: bool) -> TinyShard:
        assert (world.layout.tp, world.layout.pp, device.type) == (1, 1, "cpu")
        return TinyShard(config, world, fresh)

    def token_flops(self, config: JobConfig) -> float | None:
        return None

    def shard_spec(self, config: JobConfig, layout: Layout, rank: int) -> ShardSpec:
        return tiny_spec()

    def gradient_bucket(self, config: JobConfig, layout: Layout) -> int | None:
        return None

    def open_samples(self, config: JobConfig, run_dir: RunDir) -> Samples:
        return Counting()

    def open_validation(self, config: JobConfig, run_dir: RunDir) -> Samples | None:
        return None


def _view(moment: torch.Tensor) -> torch.Tensor:
    return moment if moment.untyped_storage().nbytes() else torch.empty(moment.shape, device="meta")
