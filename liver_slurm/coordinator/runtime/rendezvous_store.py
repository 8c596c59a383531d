"""The store through which a target world's members find each other.

It lives here, and not with a training rank, because any rank may leave.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from liver_slurm.base.imports import quick_imports

CONNECT = timedelta(seconds=30)


def host_store(host: str) -> tuple[Any, int]:
    """Start a TCPStore server in this process; it serves as long as the returned store is kept.

    Returns:
        the store, and the port that it listens on.
    """
    with quick_imports():
        from torch.distributed import TCPStore  # slow: only a coordinator's process pays for it

    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=CONNECT)
    return store, int(store.port)
