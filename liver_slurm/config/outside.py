"""Sections of a job file about what the run offers to the world outside: figures, and word of what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liver_slurm.config.types import PathText, Port, Seconds, Text, WebUrl

SECRET_KEYS = ("notify.command", "notify.webhook")
"""Keys whose values are shown to nobody."""


@dataclass(frozen=True)
class PrometheusSection:
    """The run's figures for Prometheus, which the coordinator offers. Off unless a port or a folder is named."""

    port: Port | None = None
    """Port at which the coordinator serves ``/metrics`` in the OpenMetrics format. With 0 the kernel chooses one, which
    ``prometheus.json`` in the run directory names. Default: nothing is served."""
    interface: Text | None = None
    """Network interface that the endpoint is bound to, such as ``eth0`` or ``lo``. Default: stream.interface, else the
    address of the host's name."""
    textfile: PathText | None = None
    """Folder of node_exporter's textfile collector on the coordinator's node. The figures are written to
    ``liver-slurm-RUN.prom`` in it, which is removed at the end of the run. Default: nothing is written."""
    every: Seconds = 15.0
    """Time between two writes of that file."""


@dataclass(frozen=True)
class NotifySection:
    """Whom to tell what becomes of the run. The coordinator does it along with all else; training never waits."""

    command: tuple[Text, ...] = ()
    """Command to run on the coordinator's node, as a list of words and without a shell. It gets a JSON document on
    stdin, and LIVER_EVENT, LIVER_RUN and LIVER_TEXT in its environment."""
    webhook: WebUrl | None = None
    """URL to which the JSON document is posted; its key ``text`` is what Slack and Mattermost show. No command shows
    the URL, and with it ``job.json`` is readable to you alone."""
    events: tuple[
        Literal["started", "grew", "shrank", "reshaped", "interrupted", "finished", "stopped", "failed"], ...
    ] = (
        "started",
        "grew",
        "shrank",
        "reshaped",
        "interrupted",
        "finished",
        "stopped",
        "failed",
    )
    """What is told: the first world trains, the world changed its size or only its layout, Slurm took the job away, and
    the three ways in which a run ends; ``stopped`` is one that was cancelled or met its time limit."""
    timeout: Seconds = 10.0
    """Time that the command, or the post, may take; after it, it is killed and counts as failed."""
