"""The shard of one rank on megatron-core: how it is built, and its face to the rest of the product."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import NO_FLAGS, Evaluation, Reached, Samples, StepFlags, StepResult, TrainingShard
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.boxes import optimizer_state, state_boxes
from liver_slurm.engine.megatron.dimensions import collection, make_live
from liver_slurm.engine.megatron.fp8 import check_device
from liver_slurm.engine.megatron.gather import Gather
from liver_slurm.engine.megatron.gradients import add_gradients_first
from liver_slurm.engine.megatron.initial import initialise
from liver_slurm.engine.megatron.model import balance_rate, build_model, materialise, unwrap
from liver_slurm.engine.megatron.muon import Matrix, Muon
from liver_slurm.engine.megatron.rank_state import RankState
from liver_slurm.engine.megatron.replay import LiveUpdates, complete, replica_of
from liver_slurm.engine.megatron.rounded import RoundedMoments
from liver_slurm.engine.megatron.sharing import share_storage
from liver_slurm.engine.megatron.spec import gradient_bucket, group_overrides
from liver_slurm.engine.megatron.step import evaluate, train_step, update
from liver_slurm.engine.replica import Boxes, LayerFilter, Replica, every_layer
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.reshard.tensors import replayable

with compat.imports():
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.distributed.finalize_model_grads import finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator


compat.use_torch_optimizers()


class MegatronShard(RankState):
    """Implements :class:`liver_slurm.engine.api.TrainingShard`, which documents the methods."""

    def boxes(self, chosen: LayerFilter = every_layer) -> Boxes:
        return state_boxes(self, chosen)

    def replica(self, chosen: LayerFilter = every_layer) -> Replica:
        return replica_of(self, chosen)

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from self.parameters.values()
        for chunk in self.chunks:
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
                yield buffer.grad_data
        for optimizer in self.inner_optimizers():
            for group in optimizer.optimizer.param_groups:
                for parameter in group["params"]:
                    yield parameter
                    kept = optimizer.optimizer.state[parameter]
                    yield from (tensor for name, tensor in kept.items() if name != "step")

    def moments(self) -> Iterator[tuple[int, torch.Tensor]]:
        for param in self.spec.params:
            held = optimizer_state(self, param) if param.trained else None
            if held is not None:
                yield from ((param.layer, held.tensors[name]) for name in param.moments)

    def updates(self) -> LiveUpdates:
        return LiveUpdates(self)

    def share_storage(self, live: TrainingShard) -> None:
        assert isinstance(live, RankState), "both worlds of a run are trained by one engine"
        share_storage(live, self)

    def derive_weights(self, adam_step: int) -> Gather:
        return complete(self, adam_step)

    def make_live(self) -> None:
        make_live(self.world, self.config.train.seed)

    def train_step(
        self,
        samples: Samples,
        step: int,
        flags: StepFlags = NO_FLAGS,
        before_update: Callable[[float], None] | None = None,
    ) -> StepResult:
        self.computing = True
        try:
            return train_step(self, samples, step, flags, before_update)
        finally:
            self.computing = False

    def evaluate(self, samples: Samples, first: int, count: int, interrupt: bool) -> Evaluation:
        return evaluate(self, samples, first, count, interrupt)

    def when_gradients_are_final(self, call: Callable[[int, bool], None] | None) -> None:
        self.gradients_final = call

    @property
    def reached(self) -> Reached:
        if self.torn:
            return "torn"
        return "gradients" if self.final_norm is not None else "nothing"

    def finish_update(self) -> None:
        update(self)

    def overwritten(self, updates: int) -> None:
        self.set_step(updates)
        self.torn, self.final_norm = True, None

    def clear_caches(self) -> None:
        # The cache of their forward keeps megatron's rotary embeddings, and with them a process group and its threads.
        for module in itertools.chain.from_iterable(unwrap(chunk).modules() for chunk in self.chunks):
            if hasattr(type(module).forward, "cache_clear"):
                type(module).forward.cache_clear()


def build_shard(config: JobConfig, world: ProcessGroups, device: torch.device, *, fresh: bool) -> MegatronShard:
    """Build this rank's model and optimizer; see :meth:`liver_slurm.engine.api.Engine.build`."""
    if config.train.fp8:
        check_device(device)
    with world.scope():
        groups = collection(world)
        transformer, modules = build_model(config, groups, world.layout, world.place.pp)
        # The distributed optimizer's constructor moves trained weights into a buffer, from storage of their own.
        for module in modules:
            materialise(module, device, hollow=not fresh and config.train.distributed_optimizer)
        if fresh:
            initialise(modules, config)  # before fp32 masters are copied from it
        chunks = _with_gradients(config, world, groups, transformer, modules)
        optimizer = get_megatron_optimizer(
            _optimizer_config(config, transformer),
            chunks,
            group_overrides(config, world.layout, modules),
            use_gloo_process_groups=False,
            pg_collection=groups,
        )
        shard = MegatronShard(
            config, world, device, groups, transformer, chunks, optimizer, P2PCommunicator(groups.pp, transformer)
        )
        if config.train.optimizer == "muon":
            _use_muon(shard)
        if config.train.moments_precision == "bf16":
            for inner in shard.inner_optimizers():
                inner.optimizer = RoundedMoments(inner.optimizer, config.train.optimizer)
        make = torch.zeros_like if fresh else _without_storage
        for each in shard.optimizer_states():
            each.seed(make, config.train.ema_decay, balance_rate(config.model))
            if fresh:
                each.begin_averages()
        return shard


def _with_gradients(
    config: JobConfig, world: ProcessGroups, groups: Any, transformer: Any, modules: list[torch.nn.Module]
) -> list[Any]:
    """Wrap ``DistributedDataParallel`` around each chunk: gradient buffers, and how replicas reduce them."""
    bucket = gradient_bucket(config, world.layout)
    chunks = [
        DistributedDataParallel(
            transformer,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=config.train.distributed_optimizer,
                average_in_collective=False,
                # Buckets are reduced while the last microbatch's backward pass goes on.
                overlap_grad_reduce=bucket is not None,
                bucket_size=bucket,
            ),
            module,
            disable_bucketing=number > 0,
            pg_collection=groups,
        )
        for number, module in enumerate(modules)
    ]
    for module in modules:
        add_gradients_first(module.parameters())
    if bucket is not None:
        pauses = [chunk.no_sync for chunk in chunks]
        transformer.no_sync_func = pauses if len(pauses) > 1 else pauses[0]
    transformer.finalize_model_grads_func = functools.partial(finalize_model_grads, pg_collection=groups)
    return chunks


def _optimizer_config(config: JobConfig, transformer: Any) -> Any:
    train = config.train
    return OptimizerConfig(
        optimizer="adam" if train.optimizer == "muon" else train.optimizer,
        lr=train.lr,
        min_lr=train.min_lr,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_eps=train.adam_eps,
        sgd_momentum=train.sgd_momentum,
        clip_grad=train.clip_grad,
        bf16=transformer.bf16,
        params_dtype=transformer.params_dtype,
        use_distributed_optimizer=train.distributed_optimizer,
    )


def _use_muon(state: RankState) -> None:
    """Have a rank's parameters updated by :class:`Muon` in the place of the AdamW that megatron has made for them."""
    transformer, matrices = state.transformer, {}
    groups, width = transformer.num_query_groups, transformer.kv_channels
    heads = (transformer.num_attention_heads // groups * width, width, width)
    for param in state.spec.params:
        if param.trained and not replayable(param.moments):
            parameter = state.parameters[param.name]
            group = state.groups.expt_tp if param.expert else state.groups.tp
            matrices[getattr(parameter, "main_param", parameter)] = Matrix.of(param, group, heads)
    for each in state.inner_optimizers():
        each.optimizer = Muon(each.optimizer.param_groups, matrices, state.config.train)


def _without_storage(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    moment = torch.empty_like(parameter, dtype=dtype)
    moment.untyped_storage().resize_(0)
    return moment
