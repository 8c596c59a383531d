"""A training loop with FSDP2 (``fully_shard``) and a small Llama, whose parameters any number of ranks may share.

The data are arithmetic progressions modulo the vocabulary: their next term can be learnt from the terms before.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from liver_slurm import Elastic

VOCABULARY, WIDTH, HEADS, MLP, LAYERS = 61, 64, 4, 172, 2


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(half) / half))
        # The same in every world, so it is no state: not persistent.
        self.register_buffer("turn", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Go from [batch, length, width] to the same."""
        batch, length, _ = hidden.shape
        queries, keys, values = self.qkv(hidden).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(self._turned(queries), self._turned(keys), values, is_causal=True)
        mixed: torch.Tensor = self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        return mixed

    def _turned(self, heads: torch.Tensor) -> torch.Tensor:
        (cos, sin), (one, other) = self.turn[:, : heads.shape[2]], heads.chunk(2, dim=-1)
        return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)


class Block(nn.Module):
    """A layer: attention, and a gated MLP."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.attention, self.norms = Attention(length), nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, MLP, bias=False) for _ in range(2))
        self.down = nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Go from [batch, length, width] to the same."""
        hidden = hidden + self.attention(self.norms[0](hidden))
        inner = self.norms[1](hidden)
        mixed: torch.Tensor = hidden + self.down(F.silu(self.gate(inner)) * self.up(inner))
        return mixed


class Llama(nn.Module):
    """Embedding, blocks, and the logits of each next token."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(length) for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Go from [batch, length] to [batch, length, vocabulary]."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


def progressions(samples: range, length: int) -> torch.Tensor:
    """Return the samples of these numbers, [samples, length + 1]: the same whichever rank asks for them."""
    numbers = torch.tensor([*samples])[:, None]
    return (numbers * 7919 % VOCABULARY + (1 + numbers % 5) * torch.arange(length + 1)) % VOCABULARY


def main(elastic: Elastic) -> None:
    """Train in one world; ``train.loop`` of the job file."""
    length = elastic.job.train.seq_length
    model = Llama(length).to(elastic.device)
    mesh = elastic.mesh
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    elastic.register(model=model, optimizer=optimizer)

    for step in elastic.steps():
        tokens = progressions(step.samples, length).to(elastic.device)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        (loss * step.weight).backward()
        step.report(loss)
        optimizer.step()
