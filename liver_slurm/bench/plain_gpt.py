"""``python -m liver_slurm.bench.plain_gpt``: the page of PyTorch that a user would write instead, as a baseline.

The same model as a job file's, in one process on one device: bf16 autocast over fp32 parameters, fused attention, one
``torch.compile`` around the whole of it, fused AdamW, no parallelism, no checkpoint, random tokens. It reads a JSON
document with the shape on its standard input and prints one with the times of its steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE = 10_000.0
EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    """What is trained, and how much of it a step takes."""

    layers: int
    hidden: int
    heads: int
    groups: int
    feed_forward: int
    vocabulary: int
    sequence: int
    micro_batch: int
    global_batch: int
    steps: int
    tied: bool
    bf16: bool
    fp8: bool = False
    """In FP8 what can be, in what is compared; plain PyTorch stays in bf16."""


class Norm(nn.Module):  # type: ignore[misc]
    """RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), EPSILON)


class Block(nn.Module):  # type: ignore[misc]
    """Attention with grouped queries and rotary positions, then a SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.groups, self.head = shape.heads, shape.groups, shape.hidden // shape.heads
        self.norms = nn.ModuleList((Norm(shape.hidden), Norm(shape.hidden)))
        self.qkv = nn.Linear(shape.hidden, (shape.heads + 2 * shape.groups) * self.head, bias=False)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.up = nn.Linear(shape.hidden, 2 * shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, sequence, hidden] to the same."""
        batch, length, width = x.shape
        mixed = self.qkv(self.norms[0](x)).view(batch, length, -1, self.head).transpose(1, 2)
        query, key, value = mixed.split((self.heads, self.groups, self.groups), 1)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.heads > self.groups)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, linear = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * linear)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions (Su et al. 2021)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Gpt(nn.Module):  # type: ignore[misc]
    """The model with its loss."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden)
        self.output = self.embedding if shape.tied else nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        head = shape.hidden // shape.heads
        angles = torch.outer(torch.arange(shape.sequence).float(), BASE ** -(torch.arange(0, head, 2).float() / head))
        self.register_buffer("cos", angles.cos().to(dtype))
        self.register_buffer("sin", angles.sin().to(dtype))

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy."""
        x = self.embedding(tokens).to(self.dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.output.weight.to(self.dtype))
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels.reshape(-1))


def train(shape: Shape) -> dict[str, Any]:
    """Return the seconds of each step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if shape.bf16 else torch.float32
    torch.manual_seed(0)
    with device:
        model = Gpt(shape, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type == "cuda")
    loss_of = torch.compile(model) if device.type == "cuda" else model
    count = shape.global_batch // shape.micro_batch

    def step() -> None:
        for _ in range(count):
            size = (shape.micro_batch, shape.sequence + 1)
            tokens = torch.randint(0, shape.vocabulary, size, device=device)
            with torch.autocast(device.type, dtype, enabled=shape.bf16):
                loss = loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) / count
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"seconds": timed_steps(step, shape.steps, device)}


def timed_steps(step: Callable[[], None], steps: int, device: torch.device) -> list[float]:
    """Return the seconds of each of so many steps, to its end on the device."""
    times = []
    for _ in range(steps):
        _synchronize(device)
        begun = time.perf_counter()
        step()
        _synchronize(device)
        times.append(time.perf_counter() - begun)
    return times


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(train(Shape(**json.load(sys.stdin)))))
