"""Which device a worker trains on."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig


def choose_device(config: JobConfig) -> torch.device:
    """The CPU, made ready, where the job asks for no GPUs; else one of those that this task may use.

    To be called before anything that may start CUDA.

    Raises:
        BadInput: the job asks for GPUs and torch sees none.
    """
    # torch decides on this thread's number of threads at its first call that needs one; state moves in threads that may
    # have set theirs by then, which torch takes to be meant for all that have not decided.
    torch.get_num_threads()
    if not any(component.gpus_per_task for component in config.live.component):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        # Large tensors on large pages: a step allocates many, and each page costs a fault.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        return torch.device("cpu")
    if torch.cuda.device_count() == 0:
        raise BadInput("live.component.gpus_per_task is 1, but torch sees no GPU here; set it to 0")
    return claim_card(os.environ)


def claim_card(environment: MutableMapping[str, str]) -> torch.device:
    """The card that is this process's by its number on the machine; it sees no other one from now on.

    So every thread uses it, also those of libraries: one that nobody tells otherwise has card 0 as its current one.

    Where a run without Slurm has more workers than there are cards, several share one. NCCL allows that if each looks
    like a host of its own and talks through sockets; what the user has set of its variables wins.

    Args:
        environment: this process's: Slurm's number in it, or torchrun's variables, which runs without Slurm set.

    Raises:
        RuntimeError: CUDA has been started in this process, so that it sees all cards for good.
    """
    cards = torch.cuda.device_count()  # asks the driver's library, and does not start CUDA
    if "SLURM_LOCALID" in environment:  # Slurm gives cards to tasks itself; torchrun's may be the submitting shell's
        number, workers = int(environment["SLURM_LOCALID"]), 1
    else:
        number, workers = int(environment.get("LOCAL_RANK", "0")), int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if workers > cards:
        environment.setdefault("NCCL_HOSTID", f"worker-{number}")
        for way in ("P2P", "SHM", "IB"):
            environment.setdefault(f"NCCL_{way}_DISABLE", "1")
    if cards > 1:
        names = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards)))
        environment["CUDA_VISIBLE_DEVICES"] = names.split(",")[number % cards]
    torch.cuda.init()
    if torch.cuda.device_count() != 1:
        raise RuntimeError("CUDA was started before this worker chose its card")
    return torch.device("cuda", 0)
