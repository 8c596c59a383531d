"""Worlds of small models that are made of metadata alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import BoxSpec, ParamSpec, ShardSpec, WorldSpec
from liver_slurm.reshard.tensors import Box

# Divisible by every tp that is drawn, and small enough that ranges of the distributed optimizer cut rows.
ROWS, WIDTH, VOCABULARY = 24, 12, 36


class Model:
    """Like a GPT: rows or columns split over tp, norms on every tp rank, two halves in one parameter.

    It may have experts: matrices that are split over etp, and whole over ep.
    """

    def __init__(self, layers: int, tied: bool, dtype: str, frozen: bool, scale: int = 1, experts: int = 0) -> None:
        self.layers, self.tied, self.dtype, self.frozen, self.experts = layers, tied, dtype, frozen, experts
        self.rows, self.width, self.vocabulary = ROWS * scale, WIDTH * scale, VOCABULARY * scale

    def param(self, name: str, *boxes: tuple[str, Box, Box, Box], **more: Any) -> ParamSpec:
        specs, start = [], 0
        for tensor, whole, offset, shape in boxes:
            specs.append(BoxSpec(tensor, whole, offset, shape, start, layered=len(whole) > 2 or tensor == "norm"))
            start += specs[-1].size
        return ParamSpec(name, start, self.dtype, tuple(specs), **more)

    def shard(self, layout: Layout, stages: list[range], part: int, pp: int) -> ShardSpec:
        chunks = enumerate(layout.chunks(pp))
        params = [param for chunk, stage in chunks for param in self.chunk(layout, stages, part, stage, chunk)]
        alike = ((layout.parts // own, part // own) for own in (layout.tp, layout.expert_parts))
        return ShardSpec(tuple(params), *next(alike), *next(alike))

    def chunk(self, layout: Layout, stages: list[range], part: int, stage: int, chunk: int) -> list[ParamSpec]:
        tp, (place, etp) = part % layout.tp, divmod(part % layout.expert_parts, layout.etp)
        own, cut = self.experts // layout.ep, self.rows // layout.etp
        rows, half, layers = self.rows // layout.tp, self.rows // 2 // layout.tp, self.layers
        words = self.vocabulary // layout.tp
        embedding = ("embedding", (self.vocabulary, self.width), (tp * words, 0), (words, self.width))
        params = []
        if stage == 0:
            params.append(self.param("embedding", embedding, shared=self.tied and layout.pp > 1))
        for layer in stages[stage]:
            params += [
                self.param(
                    f"{layer}.up",
                    ("up", (layers, self.rows, self.width), (layer, tp * half, 0), (1, half, self.width)),
                    (
                        "up",
                        (layers, self.rows, self.width),
                        (layer, self.rows // 2 + tp * half, 0),
                        (1, half, self.width),
                    ),
                ),
                self.param(
                    f"{layer}.down",
                    ("down", (layers, self.width, self.rows), (layer, 0, tp * rows), (1, self.width, rows)),
                ),
                self.param(
                    f"{layer}.norm",
                    ("norm", (layers, self.width), (layer, 0), (1, self.width)),
                    **({"group": None} if self.frozen else {}),
                ),
            ]
            for expert in range(place * own, (place + 1) * own):
                whole, offset = (layers, self.experts, self.rows, self.width), (layer, expert, etp * cut, 0)
                box = ("expert", whole, offset, (1, 1, cut, self.width))
                apart = layout.ep > 1 or layout.etp != layout.tp
                params.append(self.param(f"{layer}.expert{expert - place * own}", box, expert=apart))
        if stage == layout.virtual_stages - 1:
            params.append(self.param("last", ("last", (self.width,), (0,), (self.width,))))
            if not self.tied:
                params.append(self.param("output", ("output", *embedding[1:])))
            elif layout.pp > 1:
                params.append(self.param("output", embedding, shared=True))
        return [replace(param, chunk=chunk) for param in params]

    def world(self, layout: Layout, distributed: bool, bucket_size: int | None = None, sizes: Any = None) -> WorldSpec:
        bounds = np.cumsum([0, *(sizes or even(self.layers, layout.virtual_stages))]).tolist()
        stages = [range(first, last) for first, last in pairwise(bounds)]
        shards = {key: self.shard(layout, stages, *key) for key in layout.shards()}
        return WorldSpec(layout, shards, distributed, "fp32" if self.dtype == "float32" else "bf16", bucket_size)


def even(layers: int, stages: int) -> list[int]:
    return [layers // stages + (stage < layers % stages) for stage in range(stages)]
