"""Process groups beside a running world: all private names of torch.distributed that the product uses.

torch has one default process group per process and creates groups by a collective over it. Here worlds come and go
while another one trains, so groups are created directly from a store, and the default group depends on the context that
code runs in. Tested with torch 2.11 (CUDA, NCCL) and 2.13 (CPU, gloo).
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from liver_slurm.parallel.cuda_driver import recorded_only
from liver_slurm.parallel.listeners import closed_afterwards
from liver_slurm.parallel.torch_private import check_names

_REGISTERS = "_register_pg_in_world"
"""The function that registers a group, in torch 2.13 and newer; before it, the maps of ``_world`` are written."""
check_names(
    *(
        f"distributed.distributed_c10d.{name}"
        for name in (
            "_World",
            "_world",
            "_update_default_pg",
            "Backend",
            "BackendConfig",
            *([_REGISTERS] if hasattr(c10d, _REGISTERS) else ["_register_process_group", "_world.tags_to_pg"]),
        )
    ),
    *(
        f"distributed.ProcessGroup.{name}"
        for name in (
            "BackendType",
            "_register_backend",
            "_set_default_backend",
            "_set_group_desc",
            "_set_group_name",
        )
    ),
    "distributed.ProcessGroupGloo._set_sequence_number_for_group",
)

_override: contextvars.ContextVar[Any] = contextvars.ContextVar("liver_default_group", default=None)
_registry = threading.Lock()
_ABORT_TAG = 0x7EAD
"""A tag that no message is sent with."""


class _ContextualWorld(c10d._World):  # type: ignore[misc]
    """torch's registry of groups, with a default group that a context may override; all maps stay process-wide."""

    @property
    def default_pg(self) -> Any:
        override = _override.get()
        return self._default_pg if override is None else override

    @default_pg.setter
    def default_pg(self, group: Any) -> None:
        self._default_pg = group


def _install() -> None:
    if isinstance(c10d._world, _ContextualWorld):
        return
    previous = c10d._world
    c10d._world = _ContextualWorld()
    c10d._world._default_pg = previous._default_pg


@contextmanager
def default_group(group: Any) -> Iterator[None]:
    """Make ``group`` the default one for this thread inside the block; other threads are not affected."""
    _install()
    token = _override.set(group)
    try:
        yield
    finally:
        _override.reset(token)


def set_default_group(group: Any) -> None:
    """Make ``group`` (or None) the default one of the whole process, the only one that autograd's threads see."""
    _install()
    c10d._world.default_pg = group
    c10d._update_default_pg(group)


def make_group(
    store: Any, name: str, ranks: list[int], rank: int, backend: str, timeout: timedelta, device: torch.device
) -> Any:
    """Create one process group from ``store``, without a collective over any other group.

    Args:
        store: a torch store that all members reach.
        name: unique in the process and the same on every member, so it should contain the generation.
        ranks: members, as ranks of their world.
        rank: this process's rank in that world; must be in ``ranks``.
        backend: ``gloo`` or ``nccl``.
        timeout: of the group's collectives.
        device: where NCCL connects eagerly, so that no lazy communicator needs the store later.
    """
    _install()
    members, index = len(ranks), ranks.index(rank)
    scope = dist.PrefixStore(f"{name}/", store)
    group = dist.ProcessGroup(scope, index, members)
    if backend == "gloo":
        with closed_afterwards():
            core = dist.ProcessGroupGloo(dist.PrefixStore("cpu/", scope), index, members, timeout=timeout)
        kind = dist.ProcessGroup.BackendType.GLOO
        devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    else:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        options.global_ranks_in_group = ranks
        options.group_name = name
        core = dist.ProcessGroupNCCL(dist.PrefixStore("cuda/", scope), index, members, options)
        kind = dist.ProcessGroup.BackendType.NCCL
        devices = [torch.device("cuda")]
    core._set_sequence_number_for_group()
    group._set_default_backend(kind)
    for each in devices:
        group._register_backend(each, kind, core)
    group._set_group_name(name)
    group._set_group_desc(name)
    _register(group, backend, scope, name, {member: place for place, member in enumerate(ranks)})
    if backend == "nccl":
        core.eager_connect_single_device(device)
    return group


def connect_in_line(group: Any, line: Sequence[int], device: torch.device) -> None:
    """Connect each of some global ranks of an NCCL group with the next one, both ways; each of them must call it.

    NCCL connects two ranks at their first message, which takes a tenth of a second and ends with a kernel that waits
    for the other rank's. Here the messages are recorded and not run: the connection stays, and no kernel waits.
    """
    rank = dist.get_process_group_ranks(group)[group.rank()]
    here, there = (torch.zeros(1, device=device) for _ in range(2))
    torch.cuda.current_stream(device).synchronize()
    with recorded_only(device):
        for one, other in itertools.pairwise(line):
            if rank in (one, other):
                peer = other if rank == one else one
                operations = [dist.P2POp(dist.isend, here, peer, group), dist.P2POp(dist.irecv, there, peer, group)]
                for work in dist.batch_isend_irecv(operations):
                    work.wait()


_GATHER, _SUM_SCATTER = c10d.AllgatherOptions(), c10d.ReduceScatterOptions()
_GATHER.asyncOp = _SUM_SCATTER.asyncOp = False


def gather_into(whole: torch.Tensor, part: torch.Tensor, group: Any) -> None:
    """Gather all ranks' ``part``, one after the other, into ``whole``; contiguous. As torch's, without its checks."""
    work = group._allgather_base(whole, part, _GATHER)
    if work is not None:
        work.wait()


def sum_scatter_into(part: torch.Tensor, whole: torch.Tensor, group: Any) -> None:
    """Sum all ranks' ``whole``, and put this rank's part into ``part``; contiguous. As torch's, without its checks."""
    work = group._reduce_scatter_base(part, whole, _SUM_SCATTER)
    if work is not None:
        work.wait()


def _register(group: Any, backend: str, store: Any, name: str, mapping: dict[int, int]) -> None:
    config = str(c10d.BackendConfig(c10d.Backend(backend)))
    with _registry:
        if hasattr(c10d, _REGISTERS):
            c10d._register_pg_in_world(
                group,
                backend_name=backend,
                store=store,
                group_name=name,
                backend_config=config,
                rank_mapping=mapping,
                add_to_default_tag=True,
            )
            return
        world = c10d._world
        world.pg_map[group] = (backend, store)
        world.pg_names[group] = name
        world.pg_backend_config[group] = config
        world.pg_group_ranks[group] = mapping
        c10d._register_process_group(name, group)
        tag = f"ptd:{name}"
        world.tags_to_pg.setdefault("", []).append(group)
        world.tags_to_pg.setdefault(tag, []).append(group)
        world.pg_to_tag[group] = tag


def destroy_group(group: Any) -> None:
    """Destroy one group; never the process-wide default one, with which torch would clear its maps of all groups.

    Raises:
        ValueError: it is the process-wide default group.
    """
    if group is c10d._world._default_pg:
        raise ValueError("set another default group before destroying this one")
    with _registry:
        dist.destroy_process_group(group)


def abort_group(group: Any, backend: str) -> None:
    """Close a group's connections, so that every wait in it, here and at its peers, ends with an error.

    gloo has no abort, but closes all of a group's connections when one wait times out, so one is made to time out.
    Callable from any thread; the group cannot be used afterwards and must still be destroyed.
    """
    if group.size() == 1:
        return
    if backend != "gloo":
        group.abort()
        return
    nothing = torch.zeros(1, dtype=torch.uint8)
    for peer in range(group.size()):  # one that is gone fails at once, and closes no other connection
        if peer != group.rank():
            with contextlib.suppress(RuntimeError):  # the time-out is what is wanted
                group.recv([nothing], peer, _ABORT_TAG).wait(timedelta(milliseconds=1))


def is_broken_group(error: BaseException) -> bool:
    """Return whether an error says that a process group is broken: a peer is gone, or somebody has aborted the group.

    gloo raises a plain RuntimeError, as many things do; the place in its source is part of the text.
    """
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("/gloo/", "NCCL"))
