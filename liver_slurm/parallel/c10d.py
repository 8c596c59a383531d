"""Everything private of torch.distributed that the product touches, in one place.

torch has one default process group a process and makes groups by a collective over it. Worlds come and go here while
another one trains, so groups are built straight from a store, and the default group is a property of the world that a
piece of code runs in. Seen to work on torch 2.11 (CUDA, NCCL) and 2.13 (CPU, gloo).
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

_override: contextvars.ContextVar[Any] = contextvars.ContextVar("liver_default_group", default=None)
_registry = threading.Lock()
_ABORT_TAG = 0x7EAD
"""Nobody sends with this tag."""


class _ContextualWorld(c10d._World):  # type: ignore[misc]
    """torch's registry, with a default group that a context may override; all maps stay the process's own."""

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
    """Code of this thread inside the block sees ``group`` as the default one; other threads see what they saw."""
    _install()
    token = _override.set(group)
    try:
        yield
    finally:
        _override.reset(token)


def set_default_group(group: Any) -> None:
    """Make ``group`` (or None) the default one of the whole process: autograd's own threads see only this."""
    _install()
    c10d._world.default_pg = group
    c10d._update_default_pg(group)


def make_group(
    store: Any, name: str, ranks: list[int], rank: int, backend: str, timeout: timedelta, device: torch.device
) -> Any:
    """Build one process group from ``store``, with no collective over any other group.

    Args:
        store: a torch store that all members reach.
        name: unique in the process and the same on every member: carry the generation in it.
        ranks: members, in ranks of their world.
        rank: this process's rank in that world; must be in ``ranks``.
        backend: ``gloo`` or ``nccl``.
        timeout: of its collectives.
        device: where NCCL connects eagerly, so that no lazy communicator needs the store later.
    """
    _install()
    members, index = len(ranks), ranks.index(rank)
    scope = dist.PrefixStore(f"{name}/", store)
    group = dist.ProcessGroup(scope, index, members)
    if backend == "gloo":
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


def _register(group: Any, backend: str, store: Any, name: str, mapping: dict[int, int]) -> None:
    config = str(c10d.BackendConfig(c10d.Backend(backend)))
    with _registry:
        if hasattr(c10d, "_register_pg_in_world"):  # torch 2.13
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
        world = c10d._world  # torch 2.11
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
    """End one group and forget it. Never the process-wide default one: torch would clear every map with it."""
    if group is c10d._world._default_pg:
        raise ValueError("set another default group before destroying this one")
    with _registry:
        dist.destroy_process_group(group)


def abort_group(group: Any, backend: str) -> None:
    """Close a group's connections, so that whoever waits in it, here or at a peer, leaves with an error.

    gloo has no abort of its own, but closes all of a group's connections when one wait runs out of time: so one is made
    to. Callable from any thread; the group is of no use afterwards and is still to be destroyed.
    """
    if group.size() == 1:
        return
    if backend != "gloo":
        group.abort()
        return
    nothing = torch.zeros(1, dtype=torch.uint8)
    with contextlib.suppress(RuntimeError):  # the very error that is wanted
        group.recv([nothing], (group.rank() + 1) % group.size(), _ABORT_TAG).wait(timedelta(milliseconds=1))
