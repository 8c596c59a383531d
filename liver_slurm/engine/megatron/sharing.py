"""Shared storage: a worker whose shard of a parameter is the same in both worlds keeps it in place."""

from __future__ import annotations

from typing import Any

from liver_slurm.engine.megatron.rank_state import RankState


def share_storage(old: RankState, new: RankState) -> None:
    """Share the storage of boxes that are the same; see :meth:`liver_slurm.engine.api.TrainingShard.share_storage`.

    The distributed optimizer shares nothing, because it keeps parameters in buffers cut for its number of replicas.
    """
    if new.config.train.distributed_optimizer:
        return
    held = {(param.boxes, param.dtype): old.parameters[param.name] for param in old.spec.params}
    for param in new.spec.params:
        source = held.get((param.boxes, param.dtype))
        if source is None:
            continue
        target = new.parameters[param.name]
        target.data = source.data
        if not param.trained:
            continue
        source_main, target_main = _main(source), _main(target)
        target_main.data = source_main.data
        source_moments, target_moments = _moments(old, source_main), _moments(new, target_main)
        for name in param.moments:
            target_moments[name] = source_moments[name]


def _main(parameter: Any) -> Any:
    """Return the tensor that the optimizer updates for a parameter: its fp32 master, or itself."""
    return getattr(parameter, "main_param", parameter)


def _moments(state: RankState, main: Any) -> dict[str, Any]:
    for optimizer in state.inner_optimizers():
        moments: dict[str, Any] | None = optimizer.optimizer.state.get(main)
        if moments:
            return moments
    raise RuntimeError("a trained parameter has no optimizer state")
