"""Which transport carries a reconfiguration's state."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist

from liver_slurm.config.schema import StreamSection
from liver_slurm.transfer.transports import requirements, ucx
from liver_slurm.transfer.transports.base import GroupTransport, Transport
from liver_slurm.transfer.transports.host import HostTransport
from liver_slurm.transfer.transports.mesh import Connections, Reach


def choose(transport: str, device: torch.device, beside_training: bool) -> tuple[str, str]:
    """What ``stream.transport`` means for one reconfiguration.

    Args:
        transport: the setting.
        device: where the workers' state lies.
        beside_training: whether the live world trains while state moves.

    Returns:
        the transport, and the reason.
    """
    if transport == "nccl" and beside_training:
        return "auto", "NCCL's kernels and those of the live world could wait for each other on the same GPU"
    if transport != "auto":
        return transport, "stream.transport says so"
    if device.type == "cuda" and not beside_training:
        return "nccl", "state lies on GPUs, and nothing else runs on them"
    return "auto", "shared memory within a machine, TCP between machines"


def open_transport(
    store: Any,
    name: str,
    peers: int,
    me: int,
    stream: StreamSection,
    device: torch.device,
    timeout: timedelta,
    beside_training: bool,
) -> Transport:
    """Open the transport of one reconfiguration; every peer must.

    Args:
        store: a torch store that all peers reach.
        name: the same on every peer and unique among all that use the store: carry the generation in it.
        peers, me: how many peers there are, and this worker's number among them.
        stream: the job file's section.
        device: where this worker's state lies.
        timeout: how long a wait for one message may take.
        beside_training: whether the live world trains while state moves.

    Raises:
        BadInput: see :func:`liver_slurm.transfer.transports.requirements.check`.
    """
    requirements.check(stream)
    kind, _ = choose(stream.transport, device, beside_training)
    if kind in ("gloo", "nccl"):
        return GroupTransport(store, name, peers, me, kind, device, timeout)
    scope = dist.PrefixStore(f"{name}/", store)
    # entry.py and local/process.py tell gloo and NCCL the interface in this variable, a local run that it is lo
    interface = stream.interface or os.environ.get("GLOO_SOCKET_IFNAME")
    if kind == "ucx":
        ucx.use_interface(interface)
        return HostTransport(Connections(scope, me, peers, "auto", interface), timeout, ucx=True)
    return HostTransport(Connections(scope, me, peers, cast(Reach, kind), interface), timeout)
