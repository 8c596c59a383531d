"""Strike after strike at one run, each written down; whatever is in force is undone at the end, however it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from liver_slurm.base.errors import ControlError, LiverError
from liver_slurm.base.jsonl import LineWriter
from liver_slurm.chaos.agent import STRUCK
from liver_slurm.chaos.hold import Hold
from liver_slurm.chaos.schedule import Program, Strike, choose, gap
from liver_slurm.chaos.targets import targets_of
from liver_slurm.observability.status import from_status
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import StatusRequest
from liver_slurm.rundir import address
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info

POLL = 0.1
"""Seconds between looks at the clock and at what is in force."""
UNDO = 3.0
"""Seconds that all that is in force has to be undone at the end; a person who pressed Ctrl-C waits."""


class Striker(Protocol):
    """What does a fault, see :class:`liver_slurm.chaos.reach.Reach`."""

    def strike(self, strike: Strike) -> Hold:
        """Do a fault; raises LiverError if the process cannot be reached."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``chaos.jsonl``: what was done, or what became of it."""

    time: float
    """Seconds since the epoch."""
    seed: int
    number: int
    """Of the strike, from 0; what becomes of it later is a line of the same number."""
    fault: str = ""
    target: str = ""
    role: str = ""
    host: str = ""
    pid: int = 0
    job_id: str = ""
    seconds: float = 0.0
    """How long it is to last; 0.0: it is over at once."""
    outcome: str
    """``struck`` (with what there is to say), ``refused: WHY``, ``skipped: WHY``, ``undone`` or ``ended``."""
    reason: str = ""
    """Why this fault and this target."""


@dataclass
class _InForce:
    strike: Strike
    hold: Hold


@dataclass
class Conductor:
    """Chaos at one run."""

    run_dir: RunDir
    program: Program
    striker: Striker
    say: Callable[[Entry], None]
    entries: list[Entry] = field(default_factory=list)
    _in_force: list[_InForce] = field(default_factory=list)

    def run(self, over: Callable[[], bool], duration: float) -> None:
        """Strike until the run is over, or for ``duration`` seconds; then undo what is in force."""
        self._journal = LineWriter(self.run_dir.chaos)
        end, number = time.monotonic() + duration, 0
        at = time.monotonic() + gap(self.program, number)
        try:
            while time.monotonic() < end and not over():
                self._notice_what_is_over()
                if time.monotonic() >= at:
                    self._strike(number)
                    number += 1
                    at = max(time.monotonic(), at + gap(self.program, number))
                time.sleep(POLL)
        finally:
            self._undo()
            self._journal.close()

    def _strike(self, number: int) -> None:
        try:
            where = address.read(self.run_dir.address_file)
            status = from_status(request(self.run_dir, StatusRequest()).result)
        except ControlError as error:
            self._write(number, f"skipped: {error}")
            return
        targets, unproven = targets_of(status, where, read_run_info(self.run_dir).job_id)
        # Two faults at one process would undo each other: one's SIGCONT ends the other's SIGSTOP.
        struck = {(one.strike.target.host, one.strike.target.pid) for one in self._in_force}
        free = [target for target in targets if (target.host, target.pid) not in struck]
        strike, reason = choose(self.program, number, free)
        if strike is None:
            self._write(number, f"skipped: {reason}", unproven)
            return
        try:
            hold = self.striker.strike(strike)
        except LiverError as error:
            self._write(number, f"refused: {error}", reason, strike)
            return
        if hold.outcome.startswith(STRUCK):
            self._in_force.append(_InForce(strike, hold))
        self._write(number, hold.outcome, reason, strike)

    def _notice_what_is_over(self) -> None:
        for one in list(self._in_force):
            if (ended := one.hold.over()) is not None:
                self._close(one, ended)

    def _undo(self) -> None:
        for one in self._in_force:
            one.hold.release()
        deadline = time.monotonic() + UNDO
        for one in list(self._in_force):
            self._close(one, one.hold.wait(deadline))

    def _close(self, one: _InForce, ended: str) -> None:
        self._in_force.remove(one)
        if one.strike.seconds:
            self._write(one.strike.number, ended, "", one.strike)

    def _write(self, number: int, outcome: str, reason: str = "", strike: Strike | None = None) -> None:
        entry = Entry(time=time.time(), seed=self.program.seed, number=number, outcome=outcome, reason=reason)
        if strike is not None:
            target = strike.target
            entry = msgspec.structs.replace(
                entry,
                fault=strike.fault.value,
                target=target.name,
                role=target.role,
                host=target.host,
                pid=target.pid,
                job_id=target.job_id,
                seconds=strike.seconds,
            )
        self._journal.write(entry)
        self.entries.append(entry)
        self.say(entry)
