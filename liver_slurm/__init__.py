"""liver-slurm: LLM training on Slurm that keeps going while the nodes under it come and go.

The Python API has the verbs of the command line::

    import liver_slurm

    job = liver_slurm.submit("job.toml", train={"steps": 500})
    job.wait()

:class:`Elastic` is what a training loop of one's own is called with; see docs/your-loop.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liver_slurm.app.api import Job, find, submit
    from liver_slurm.engine.own_loop.elastic import Elastic

__all__ = ["Elastic", "Job", "find", "submit"]


def __getattr__(name: str) -> Any:
    # Workers and the command line import this package too, and need nothing of the API.
    if name == "Elastic":
        from liver_slurm.engine.own_loop.elastic import Elastic

        return Elastic
    if name in __all__:
        from liver_slurm.app import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
