"""Initial weights as a function of (seed, global name, layer), so that every layout starts from the same model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch

from liver_slurm.config.layouts import padded_vocabulary
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.model import unwrap, vocabulary
from liver_slurm.engine.megatron.spec import shard_spec_of
from liver_slurm.reshard.shard_spec import BoxSpec

_RESIDUAL_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")


def initialise(model: torch.nn.Module, config: JobConfig) -> None:
    """Fill the model's parameters in place, one layer of one tensor at a time.

    Vectors start at one (norms) or zero (biases), matrices at N(0, init_method_std), those that write into the residual
    stream at N(0, init_method_std / sqrt(2 · num_layers)) (Radford et al. 2019; megatron-core's default), and the rows
    that pad the vocabulary at zero.
    """
    parameters = dict(unwrap(model).named_parameters())
    with torch.no_grad():
        for param in shard_spec_of(model).params:
            flat = parameters[param.name].view(-1)
            for box in param.boxes:
                for layer, start, offset, shape in _layers(box):
                    part = tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))
                    values = _whole(box, layer, config)[part]
                    flat[start : start + values.numel()].view(shape).copy_(values)


def _layers(box: BoxSpec) -> Iterator[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """(layer, first element in the flat parameter, offset, shape) of each layer of a box."""
    if not box.layered:
        yield 0, box.start, box.offset, box.shape
        return
    size = math.prod(box.shape[1:])
    for index in range(box.shape[0]):
        yield box.offset[0] + index, box.start + index * size, box.offset[1:], box.shape[1:]


def _whole(box: BoxSpec, layer: int, config: JobConfig) -> torch.Tensor:
    """Values of the whole tensor (of one layer of it) that the box is a part of, fp32 on the CPU."""
    shape = box.global_shape[1:] if box.layered else box.global_shape
    if len(shape) == 1:
        return torch.zeros(shape) if box.tensor.endswith("bias") else torch.ones(shape)
    model = config.model
    deviation = model.init_method_std
    if box.tensor.endswith(_RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * model.num_layers)
    key = hashlib.blake2b(f"{config.train.seed}/{box.tensor}/{layer}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
    values = torch.randn(shape, generator=generator) * deviation
    if model.provider is None and shape[0] == padded_vocabulary(vocabulary(config)) and "layers" not in box.tensor:
        values[vocabulary(config) :] = 0.0
    return values
