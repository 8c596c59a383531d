"""Initial weights as a function of (seed, global name, layer, row block), so that every layout starts from one model.

They are drawn where the parameters lie, and each rank draws the blocks of rows that it has a part of: 7e9 parameters
took 115 s on one CPU thread. A CPU and a GPU draw different values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import padded_vocabulary
from liver_slurm.engine.megatron.model import named_parameters, vocabulary
from liver_slurm.engine.megatron.spec import shard_spec_of
from liver_slurm.reshard.shard_spec import BoxSpec

_RESIDUAL_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")
_BLOCK = 1 << 22
"""Elements drawn at a time, in whole rows: enough to fill a GPU, and little beside a layer."""


def initialise(chunks: Sequence[torch.nn.Module], config: JobConfig) -> None:
    """Fill the parameters of a model's chunks in place, one layer of one tensor at a time.

    Vectors start at one (norms) or zero (biases), matrices at N(0, init_method_std), those that write into the residual
    stream at N(0, init_method_std / sqrt(2 · num_layers)) (Radford et al. 2019; megatron-core's default), and the rows
    that pad the vocabulary at zero.
    """
    parameters = named_parameters(chunks)
    with torch.no_grad():
        for param in shard_spec_of(chunks, config.train).params:
            flat = parameters[param.name].view(-1)
            for box in param.boxes:
                for layer, start, offset, shape in _layers(box):
                    part = flat[start : start + math.prod(shape)].view(shape)
                    if len(shape) == 1:
                        part.fill_(0.0 if box.tensor.endswith("bias") else 1.0)
                    else:
                        _draw(part, offset, box, layer, config)


def _layers(box: BoxSpec) -> Iterator[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """(layer, first element in the flat parameter, offset, shape) of each layer of a box."""
    if not box.layered:
        yield 0, box.start, box.offset, box.shape
        return
    size = math.prod(box.shape[1:])
    for index in range(box.shape[0]):
        yield box.offset[0] + index, box.start + index * size, box.offset[1:], box.shape[1:]


def _draw(part: torch.Tensor, offset: tuple[int, ...], box: BoxSpec, layer: int, config: JobConfig) -> None:
    """Fill ``part``, which lies at ``offset`` of one layer of the box's tensor, a block of whole rows at a time."""
    model, whole = config.model, box.global_shape[1:] if box.layered else box.global_shape
    deviation = model.init_method_std
    if box.tensor.endswith(_RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * model.num_layers)
    rows = max(1, _BLOCK // math.prod(whole[1:]))
    columns = tuple(slice(first, first + size) for first, size in zip(offset[1:], part.shape[1:], strict=True))
    first, last = offset[0], offset[0] + part.shape[0]
    for block in range(first // rows, math.ceil(last / rows)):
        begin, end = block * rows, min((block + 1) * rows, whole[0])
        key = f"{config.train.seed}/{box.tensor}/{layer}/{block}"
        values = torch.randn((end - begin, *whole[1:]), generator=_generator(key, part.device), device=part.device)
        here = slice(max(first, begin), min(last, end))
        inside = (slice(here.start - begin, here.stop - begin), *columns)
        part[here.start - first : here.stop - first].copy_(values[inside] * deviation)
    if model.provider is None and whole[0] == padded_vocabulary(vocabulary(config)) and "layers" not in box.tensor:
        part[max(0, vocabulary(config) - first) :] = 0.0


def _generator(key: str, device: torch.device) -> torch.Generator:
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator(device).manual_seed(seed)
