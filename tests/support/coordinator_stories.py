"""Stories of the coordinator's protocol, for transcripts: how they are kept, and beginnings that many of them share."""

from __future__ import annotations

from collections.abc import Callable

from transcript import Story

Telling = Callable[[], Story]
STORIES: dict[str, Telling] = {}
"""By name, which is also that of the transcript's file."""
LIVE = ("live-0", "live-1")
ALL = (*LIVE, "standby-a", "standby-b")


def story(tell: Telling) -> Telling:
    """Add a story to the list."""
    STORIES[tell.__name__] = tell
    return tell


def two(**options: object) -> Story:
    """Two live workers train in world 0."""
    run = Story(**options)  # type: ignore[arg-type]
    run.train(*LIVE)
    return run


def growing(**options: object) -> Story:
    """Two standbys have come, and a world with them is being prepared."""
    run = two(**options)
    with run.quietly("standby-a and standby-b come, and the coordinator asks for a world with them"):
        run.register("standby-a")
        run.register("standby-b")
        run.tick(0.3)
    return run


def four() -> Story:
    """Two live workers and two standbys train in world 1."""
    run = two()
    run.grow("standby-a", "standby-b")
    return run
