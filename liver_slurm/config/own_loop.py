"""What a job with a training loop of the user's own may say: its state moves in one way, and its model is its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.config.problem import Problem, shown
from liver_slurm.config.schema import JobConfig

_SET = {
    ("train", "seq_length"): 1,
    ("train", "distributed_optimizer"): False,
    ("stream", "mode"): "pause",
    ("recovery", "mirror"): "off",
}
"""Keys whose defaults are others with a loop of one's own."""
_FIXED = (
    ("train", "distributed_optimizer", "the loop's optimizer divides its state as its parameters are divided"),
    ("stream", "mode", "the updates of an optimizer that may be any cannot be replayed"),
    ("recovery", "mirror", "mirrors are of Adam's state"),
)
"""Of these, those that cannot be anything else, and why."""
_UNUSED = (
    ("model", "provider"),
    ("model", "from_hf"),
    ("data", "paths"),
    ("data", "provider"),
    ("validation", "paths"),
    ("validation", "provider"),
    ("train", "start_from"),
    ("train", "ema_decay"),
    ("train", "fp8"),
    ("stream", "memory_limit"),
)
"""Keys that mean something else than was wished for where a loop does not heed them."""


def with_defaults(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in what a job with a loop of the user's own leaves out; other jobs stay as they are."""
    train = tables.get("train")
    if not isinstance(train, Mapping) or not train.get("loop"):
        return tables
    filled = dict(tables)
    if isinstance(model := filled.get("model"), Mapping):  # a resolved job says 0 for sizes that it does not have
        filled["model"] = {key: value for key, value in model.items() if value != 0 or isinstance(value, bool)}
    for (section, key), value in _SET.items():
        given = filled.get(section, {})
        filled[section] = {key: value, **given} if isinstance(given, Mapping) else given
    return filled


def refuse(config: JobConfig, command: str) -> None:
    """Check that a job's model is one that a command can build by itself.

    Raises:
        BadInput: it is that of a loop of the user's own.
    """
    if config.train.loop is not None:
        raise BadInput(f"train.loop: {command} builds the model, and that of {config.train.loop} is the loop's alone")


def problems(config: JobConfig) -> Iterator[Problem]:
    """Find what a job with a loop of the user's own may not say."""
    if config.train.loop is None:
        return
    for section, key, reason in _FIXED:
        given, allowed = getattr(getattr(config, section), key), _SET[section, key]
        if given != allowed:
            text = f"{shown(given)} is not allowed with train.loop, as {reason}; allowed: {shown(allowed)}"
            yield Problem(f"{section}.{key}", text)
    for section, key in _UNUSED:
        if getattr(getattr(config, section), key):
            yield Problem(f"{section}.{key}", "has no use with train.loop; allowed: one of the two")
