"""What slurmctld says of itself: queries that it has counted, how long its schedulers take, and its log."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

from scale_log import Log, read
from scale_repeat import Repeated

QUERIES = re.compile(r"^\s*(REQUEST_\w*INFO\w*|REQUEST_\w*STATS\w*)\s.*count:(\d+)", re.MULTILINE)
CYCLES = re.compile(r"^(Main|Backfilling) .*?Max cycle: +(\d+).*?Mean cycle: +(\d+)", re.MULTILINE | re.DOTALL)


def command(*argv: str) -> str:
    """Run one of Slurm's commands and return what it says."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def queries() -> int:
    """Queries that slurmctld has counted so far, by its own statistics; those of sdiag itself are left out."""
    by_type = command("sdiag").partition("by message type")[2].partition("by user")[0]
    return sum(int(count) for name, count in QUERIES.findall(by_type) if name != "REQUEST_STATS_INFO")


def in_a_minute(counted: list[tuple[float, int]]) -> int:
    """Return the most queries that came between two looks at the count which are a minute apart at most."""
    most = first = 0
    for moment, count in counted:
        while counted[first][0] < moment - 60.0:
            first += 1
        most = max(most, count - counted[first][1])
    return most


class QueryCount:
    """Looks once a second, from now on, how many queries slurmctld has counted."""

    def __init__(self) -> None:
        self.counted: list[tuple[float, int]] = []
        """When it was looked, and how many there were by then."""
        self._look()
        self._looks = Repeated(self._look, 1.0)

    def _look(self) -> None:
        self.counted.append((time.time(), queries()))

    def check(self) -> None:
        """Fail if it does not look any more."""
        self._looks.check()

    def per_minute(self, since: float, until: float) -> float:
        """Queries a minute in between, in the mean."""
        counted = [(moment, count) for moment, count in self.counted if since <= moment <= until]
        (first, before), (last, after) = counted[0], counted[-1]
        return 60 * (after - before) / (last - first)

    def close(self) -> None:
        """Look no more."""
        self._looks.close()


def cycles(text: str) -> dict[str, tuple[float, float]]:
    """Return the mean and the longest time of a look at the queue, seconds, of ``Main`` and ``Backfilling``."""
    return {name: (int(mean) / 1e6, int(most) / 1e6) for name, most, mean in CYCLES.findall(text)}


def settings() -> dict[str, str]:
    """Slurm's settings."""
    pairs = (line.partition("=") for line in command("scontrol", "show", "config").splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


class Slurmctld:
    """What slurmctld writes down meanwhile."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._log = Path(settings()["SlurmctldLogFile"])
        # Without these it does not say who is taken for whom, nor when a node is free.
        command("scontrol", "setdebug", "debug")
        command("scontrol", "setdebugflags", "+TraceJobs")

    def begin(self) -> None:
        """Count anew."""
        command("sdiag", "--reset")
        self.note("sdiag-before.txt")

    def note(self, name: str) -> str:
        """Keep its statistics, and return them."""
        text = command("sdiag")
        (self._root / name).write_text(text)
        return text

    def keep_log(self) -> None:
        """Keep the log, which goes with the cluster."""
        shutil.copyfile(self._log, self._root / "slurmctld.log")

    def read_log(self) -> Log:
        """Read what was kept of it."""
        with (self._root / "slurmctld.log").open(errors="replace") as lines:
            return read(lines)
