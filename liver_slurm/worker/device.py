"""Which device a worker trains on."""

from __future__ import annotations

import os

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.errors import BadInput


def choose_device(config: JobConfig) -> torch.device:
    """The CPU, made ready, where the job asks for no GPUs; else one that this task may use, by its number on the node.

    Raises:
        BadInput: the job asks for GPUs and torch sees none.
    """
    if not any(component.gpus_per_task for component in config.live.component):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        # Large tensors on large pages: a step allocates many, and each page costs a fault.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("live.component.gpus_per_task is 1, but torch sees no GPU here; set it to 0")
    index = int(os.environ.get("SLURM_LOCALID", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
