"""A training loop with DistributedDataParallel, AdamW and a scheduler, which may gain and lose ranks between steps.

The model learns to name the class of points on the arms of a spiral.
"""

from __future__ import annotations

import math

import torch
from torch.nn.parallel import DistributedDataParallel

from liver_slurm import Elastic

CLASSES = 3


def points(samples: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of these numbers and their classes: the same whichever rank asks for them."""
    numbers = torch.tensor([*samples])
    labels = numbers % CLASSES
    along = (numbers * 0.6180339887) % 1.0
    angle = 4.0 * along + 2.0 * math.pi * labels / CLASSES
    return torch.stack([along * angle.cos(), along * angle.sin()], dim=1), labels


def main(elastic: Elastic) -> None:
    """Train in one world; ``train.loop`` of the job file."""
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, CLASSES)
    ).to(elastic.device)
    # Without init_sync ranks would talk to each other while another world trains; all begin with the same seed.
    wrapped = DistributedDataParallel(model, process_group=elastic.group, init_sync=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=elastic.job.train.steps)
    elastic.register(model=model, optimizer=optimizer, scheduler=scheduler)

    for step in elastic.steps():
        inputs, labels = (part.to(elastic.device) for part in points(step.samples))
        loss = torch.nn.functional.cross_entropy(wrapped(inputs), labels)
        optimizer.zero_grad()
        (loss * step.weight).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step.report(loss, norm)
        optimizer.step()
        scheduler.step()
