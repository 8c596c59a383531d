"""``train.loop`` of tests: loops of small models at a pace that a test sets, with state of every kind."""

from __future__ import annotations

from typing import Any

import torch
from paced_samples import PacedSamples
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from liver_slurm import Elastic
from liver_slurm.config.schema import JobConfig

ROWS = 7
"""Of the table that the loop divides itself: no number of ranks divides it."""


class Words(nn.Module):
    """An embedding and an output layer, and a buffer that each forward pass changes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, 10), nn.Linear(10, vocabulary)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """From [batch, length] to [batch, length, vocabulary]; the loss depends on the number of passes."""
        self.passes += 1
        found: torch.Tensor = self.head(torch.tanh(self.embedding(tokens))) * (1.0 + 0.01 * self.passes.float())
        return found


def losses_of(words: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Mean loss of each next token."""
    return F.cross_entropy(words(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def own_rows(shard: int, shards: int) -> range:
    """Rows of the table that one of so many ranks has."""
    return range(shard * ROWS // shards, (shard + 1) * ROWS // shards)


def replicated(elastic: Elastic) -> None:
    """DDP, SGD with momentum and a scheduler, and two plain tensors: one the same everywhere, one divided."""
    samples = PacedSamples(elastic.job)
    words = Words(elastic.job.model.vocab_size or 0)
    wrapped = DistributedDataParallel(words, process_group=elastic.group, init_sync=False, broadcast_buffers=False)
    optimizer = torch.optim.SGD(words.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
    mean = torch.zeros(10)
    rows = own_rows(*elastic.shard)
    table = torch.zeros(len(rows), 2)
    elastic.register(words=words, optimizer=optimizer, scheduler=scheduler, mean=mean)
    elastic.register(table=elastic.sharded(table, (ROWS, 2), (rows.start, 0)))
    for step in elastic.steps():
        tokens = torch.from_numpy(samples.batch(step.samples.start, len(step.samples)))
        # The loss shows whether plain tensors have come along.
        total = table[:, 0] @ torch.tensor([*rows], dtype=torch.float32)
        torch.distributed.all_reduce(total, group=elastic.shard_group)
        loss = losses_of(wrapped, tokens) + 0.001 * (mean.sum() + total)
        optimizer.zero_grad()
        (loss * step.weight).backward()
        step.report(loss)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            mean.lerp_(words.embedding.weight.mean(dim=0), 0.1)
            table += 1.0


def divided(elastic: Elastic) -> None:
    """FSDP2 and AdamW; with several replicas HSDP."""
    samples = PacedSamples(elastic.job)
    words = Words(elastic.job.model.vocab_size or 0)
    fully_shard(words, mesh=elastic.mesh)
    optimizer = torch.optim.AdamW(words.parameters(), lr=0.02)
    elastic.register(words=words, optimizer=optimizer)
    for step in elastic.steps():
        tokens = torch.from_numpy(samples.batch(step.samples.start, len(step.samples)))
        loss = losses_of(words, tokens)
        optimizer.zero_grad()
        (loss * step.weight).backward()
        step.report(loss)
        optimizer.step()


def undisturbed(job: JobConfig, kind: str) -> dict[int, float]:
    """Losses of the same loop in plain PyTorch, in one process that knows nothing of worlds."""
    torch.manual_seed(job.train.seed)
    samples = PacedSamples(job)
    words = Words(job.model.vocab_size or 0)
    parameters = list(words.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=0.02)
    if kind == "replicated":
        optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8 if kind == "replicated" else 1.0)
    mean, table, found = torch.zeros(10), 0.0, {}
    for step in range(job.train.steps):
        batch = job.train.global_batch_size
        tokens = torch.stack([torch.from_numpy(samples._sample(step * batch + one)) for one in range(batch)]).long()
        loss = losses_of(words, tokens)
        if kind == "replicated":
            loss = loss + 0.001 * (mean.sum() + table * sum(range(ROWS)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        found[step + 1] = float(loss.detach())
        with torch.no_grad():
            mean.lerp_(words.embedding.weight.mean(dim=0), 0.1)
        table += 1.0
    return found
