"""Causes: what a device did in a second of a run, and the bucket of ml-goodput-measurement that each belongs to. Pure.

Buckets have the names of Google's ml-goodput-measurement (its ``BadputType``), so that dashboards made for those show
them. Three are ours: ``PRODUCTIVE`` (``GoodputType.TOTAL`` there), ``QUEUE`` and ``ELASTIC_IDLE``, which it has no
name for.
"""

from __future__ import annotations

from enum import IntEnum


class Cause(IntEnum):
    """What a device did, or why it did nothing; the numbers are internal."""

    STEP = 0
    """Trained a step that counts, from its first forward pass to the next step's, as long as that usually takes."""
    FIRST_STEP = 1
    """The first step of a world took longer than its others do."""
    DATA = 2
    """A step waited for its samples."""
    CHECKPOINT = 3
    """Training stood still for a checkpoint."""
    PAUSE = 4
    """Training stood still for a reconfiguration."""
    WASTED = 5
    """Trained what does not count: steps that were trained again, or the one that was cut off."""
    RECOVERY = 6
    """A world was lost, and the next one does not train yet."""
    QUEUE = 7
    """The guaranteed job waited for its first start."""
    REQUEUE = 8
    """The guaranteed job was taken away and waited to be started again."""
    START = 9
    """The guaranteed job's processes start: imports, device, warm-up."""
    FIRST_WORLD = 10
    """The first world is built: groups, model, checkpoint."""
    STANDBY_START = 11
    """A standby job has its node, and its worker starts."""
    JOINING = 12
    """A standby prepares the world that it will be in."""
    IN_VAIN = 13
    """A standby prepared a world that was given up."""
    IDLE = 14
    """A worker is warm and in no world."""
    LEAVING = 15
    """A worker with a notice, or told to leave, is in no world any more and has not exited yet."""
    BETWEEN = 16
    """Between two steps, longer than usual, and nothing on record says why."""
    IN_FLIGHT = 17
    """The step of a run in progress that is not over yet."""
    ENDING = 18
    """The last step is trained, or the outcome decided, and the processes end."""
    VALIDATION = 19
    """Training stood still for a validation."""


PRODUCTIVE = "PRODUCTIVE"

BUCKETS: dict[Cause, str] = {
    Cause.STEP: PRODUCTIVE,
    Cause.FIRST_STEP: "PROGRAM_STARTUP",
    Cause.DATA: "DATA_LOADING_SYNC",
    Cause.CHECKPOINT: "UNPRODUCTIVE_CHECKPOINT_SAVE_TIME",
    Cause.VALIDATION: "CUSTOM_BADPUT_EVENTS",
    Cause.PAUSE: "ELASTIC_REINITIALIZATION",
    Cause.WASTED: "WASTED_PROGRESS_FROM_DISRUPTION",
    Cause.RECOVERY: "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    Cause.QUEUE: "QUEUE",
    Cause.REQUEUE: "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    Cause.START: "TPU_INITIALIZATION",
    Cause.FIRST_WORLD: "TRAINING_PREP",
    Cause.STANDBY_START: "ELASTIC_SCALE_UP",
    Cause.JOINING: "ELASTIC_SCALE_UP",
    Cause.IN_VAIN: "ELASTIC_REINITIALIZATION",
    Cause.IDLE: "ELASTIC_IDLE",
    Cause.LEAVING: "ELASTIC_SLICE_DOWN",
    Cause.BETWEEN: "OTHER",
    Cause.IN_FLIGHT: "OTHER",
    Cause.ENDING: "OTHER",
}
"""The bucket of each cause."""

NAMES: tuple[str, ...] = tuple(dict.fromkeys(BUCKETS.values()))
"""All buckets, each once, productive time first."""

UNHELD = frozenset({Cause.QUEUE, Cause.REQUEUE})
"""Causes in which the run holds no device: it waits for those of its guaranteed job."""

OF_THE_RUN = frozenset({Cause.QUEUE, Cause.REQUEUE, Cause.START, Cause.FIRST_WORLD, Cause.RECOVERY, Cause.ENDING})
"""Causes that a guaranteed device shares with the run, whether or not it is in a world: no world trains."""

Seconds = dict[Cause, float]
"""Seconds, or device-seconds, by cause; causes without any may be missing."""


def text(cause: Cause) -> str:
    """Name a cause for people and for JSON keys: ``first_step``, ``between``."""
    return cause.name.lower()


def add(total: Seconds, more: Seconds, times: float = 1.0) -> None:
    """Add seconds, each ``times`` over, to a total."""
    for cause, seconds in more.items():
        total[cause] = total.get(cause, 0.0) + seconds * times


def by_bucket(seconds: Seconds) -> dict[str, float]:
    """Sum seconds by bucket; every bucket is there, in the order of :data:`NAMES`."""
    found = dict.fromkeys(NAMES, 0.0)
    for cause, one in seconds.items():
        found[BUCKETS[cause]] += one
    return found
