"""What ``[stream]`` asks of the machine that a process runs on; said before anything starts that would need it."""

from __future__ import annotations

import logging

from liver_slurm.base.errors import BadInput
from liver_slurm.base.network import reachable_host
from liver_slurm.config.schema import StreamSection

_log = logging.getLogger(__name__)


def check(stream: StreamSection) -> None:
    """
    Raises:
        BadInput: this machine has no such interface, or nixl is not there or cannot be used.
    """
    if stream.interface is not None:
        reachable_host(stream.interface)  # gloo and NCCL would only say that they found none
    if stream.transport in ("gloo", "nccl"):
        _log.warning("stream.transport = %r is an old name: it does what 'auto' does", stream.transport)
    if stream.transport != "ucx":
        return
    try:
        import nixl._api  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"stream.transport is 'ucx', but nixl cannot be imported ({error}); pip install 'liver-slurm[ucx]', or set "
            "it to 'auto'"
        ) from None
