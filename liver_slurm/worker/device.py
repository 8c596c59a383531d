"""Device of a worker: the CPU, or the one GPU that is its own."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.base.flops import FlopsMeter, peak_tflops
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine


def choose_device(config: JobConfig) -> torch.device:
    """Choose the device: the CPU, made ready, where the job asks for no GPUs; else one of the GPUs of this task.

    Call it before anything that may start CUDA.

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
        # megatron-core puts state on a card wherever torch finds one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return torch.device("cpu")
    if torch.cuda.device_count() == 0:
        raise BadInput("live.component.gpus_per_task is 1, but torch sees no GPU here; set it to 0")
    return claim_card(os.environ)


def claim_card(environment: MutableMapping[str, str]) -> torch.device:
    """Choose the GPU by this process's number on the machine, and hide all others from it.

    Every thread then uses that GPU, also those of libraries, whose current device is number 0 unless they are told
    otherwise.

    Where a run without Slurm has more workers than GPUs, several share one. NCCL allows that if each looks like a
    separate host and talks through sockets; NCCL variables that the user has set take precedence.

    Args:
        environment: variables of this process; Slurm's task number, or torchrun's, which runs without Slurm set.

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
    # A group is connected when it is made, beside training, and not by the first step of a new world.
    environment.setdefault("NCCL_RUNTIME_CONNECT", "0")
    if cards > 1:
        names = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards)))
        environment["CUDA_VISIBLE_DEVICES"] = names.split(",")[number % cards]
    torch.cuda.init()
    if torch.cuda.device_count() != 1:
        raise RuntimeError("CUDA was started before this worker chose its card")
    return torch.device("cuda", 0)


def flops_meter(config: JobConfig, engine: Engine, device: torch.device) -> FlopsMeter:
    """Make the meter of this worker's steps, once: the model's parameters are counted for it.

    On a CPU it tells tokens a second only.
    """
    if device.type != "cuda":
        return FlopsMeter()
    peak = config.train.peak_tflops or peak_tflops(torch.cuda.get_device_name(device))
    return FlopsMeter(engine.token_flops(config), peak)
