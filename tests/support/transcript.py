"""Transcripts of the coordinator's pure core: what went in, every action that came out, and the status at the end.

A transcript is plain text, in the style of etcd-io/raft's data-driven tests. Each block is an input, after its time in
seconds since the story's start, then ``----``, then the actions that came out, in their order. An input that caused
nothing has no block of its own: it stands above the next one. Fields that have their default are left out, and equal
messages to several receivers in a row are one line::

    [0.3] live-0: Prepared generation=1 ok=true
    [0.3] live-1: Prepared generation=1 ok=true
    ----
    send live-0 live-1: ProposeBoundary epoch=1 boundary=0 step=1 purpose=cutover generation=1

Values are written by the names of their classes and fields. When a class or a field gets another name, give the old one
here, in :data:`CLASSES` or :data:`FIELDS`, and no transcript changes. Nothing of the state's inside is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from typing import Any

import msgspec
from coordinator_lab import job
from coordinator_states import START, Run, settings

from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core import client_requests
from liver_slurm.coordinator.core.io import Action, CapacitySeen, Emit, FromPeer, Input, Journal, Send
from liver_slurm.coordinator.core.records import BegunAnew, EpochStarted, Record, next_epoch
from liver_slurm.coordinator.core.status import document
from liver_slurm.coordinator.core.step import recover
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol import messages as m
from liver_slurm.rundir.events import to_document
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, StandbyJob

CLASSES: dict[str, str] = {}
"""Name of a class today: its name in the transcripts, where that is another one."""
FIELDS: dict[tuple[str, str], str] = {("CapacitySeen", "capacity"): "supply"}
"""(name of a class in the transcripts, name of its field today): the field's name there, where that is another one."""
WIDTH = 110
"""Longer lines are broken between fields."""


class Story(Run):
    """A run whose inputs and actions are written down.

    Its helpers know what the coordinator wants from the messages that it sent, as workers do, never from its state.
    """

    def __init__(self, change: Mapping[str, Any] | None = None, resize: tuple[str, ...] = (), **options: Any) -> None:
        """Start the first coordinator.

        Args:
            change: ``section.key`` of the job file, and its value.
            resize: ``STEP:LAYOUT`` of each resize that the run is started with.
            options: fields of the coordinator's settings.
        """
        self.blocks: list[str] = []
        self.inputs: list[Input] = []
        self._quiet = False
        self._without: list[str] = []
        config = _changed(job(workers=options.get("workers", 2)), change or {})
        self._settings = settings(config, **options)
        super().__init__(recover([], self._settings, START))
        told = {**options, **(change or {}), **({"resize": " ".join(resize)} if resize else {})}
        self._record_start("coordinator starts", told)
        if resize:
            wishes = [
                m.ResizeRequest(at_step=int(at), layout=layout) for at, layout in (one.split(":") for one in resize)
            ]
            self.state, actions = client_requests.schedule(self.state, wishes)
            self._note("takes over the resizes that it was started with", actions)

    # ---- writing down

    def text(self) -> str:
        """The transcript so far, with the status document of now."""
        self._flush()
        return "\n\n".join([*self.blocks, f"status\n----\n{_document(document(self.state))}"]) + "\n"

    def feed(self, given: Input) -> list[Action]:
        """Any input."""
        actions = super().feed(given)
        self.inputs.append(given)
        self._block(f"[{_number(given.time - START)}] {_input(given)}", actions)
        return actions

    @contextmanager
    def quietly(self, what: str) -> Iterator[None]:
        """Sum up what another story shows in full."""
        self._flush()
        before, self._quiet = len(self.actions), True
        try:
            yield
        finally:
            self._quiet = False
        self.blocks.append(f"# {what} ({len(self.actions) - before} actions)")

    def _block(self, given: str, actions: list[Action]) -> None:
        if self._quiet:
            return
        self._without.append(given)
        if actions:
            self._flush(_actions(actions))

    def _flush(self, actions: Sequence[str] = ("nothing",)) -> None:
        if self._without:
            self.blocks.append("\n".join([*self._without, "----", *actions]))
        self._without = []

    def _note(self, what: str, actions: list[Action]) -> None:
        """What the process around the core does by itself."""
        self.actions += actions
        self._block(f"[{_number(self.now - START)}] {what}", actions)

    # ---- the coordinator's process

    def restart(self, after: float = 1.0, anew: BegunAnew | None = None, **changes: Any) -> None:
        """The coordinator dies, and another one recovers from the journal.

        Args:
            after: seconds until then.
            anew: what that one writes first, if the run begins anew.
            changes: fields of its settings that are not as before.
        """
        self.now += after
        if anew is not None:
            self._note("begins anew", [Journal(anew)])
        # Through the form that they have on disk.
        journal = msgspec.json.decode(msgspec.json.encode(self.records), type=list[Record])
        self._settings = replace(self._settings, epoch=next_epoch(journal), **changes)
        self.state = recover(journal, self._settings, self.now)
        self._record_start("coordinator starts again", changes)

    def _record_start(self, what: str, told: Mapping[str, Any]) -> None:
        given = self._settings
        record = EpochStarted(epoch=given.epoch, job_id=given.job_id, restarts=given.restarts)
        self._note(" ".join([what, *(f"{key}={_text(value)}" for key, value in told.items())]), [Journal(record)])

    # ---- what workers do

    def ask(self, message: m.FromClient) -> list[Action]:
        """A client asks."""
        return self.feed(FromPeer(self.now, b"client", message))

    def beat(
        self,
        *names: str,
        generation: int = 0,
        step: int = 0,
        seconds: float = 0.1,
        after: float = 0.0,
        since_step: float | None = None,
    ) -> None:
        """Heartbeats."""
        self.now += after
        for name in names:
            self.say(
                m.Heartbeat(
                    worker=name,
                    generation=generation,
                    step=step,
                    step_seconds=seconds,
                    warm=True,
                    since_step=since_step,
                )
            )

    def train(self, *names: str, **changes: Any) -> None:
        """World 0 of these live workers trains; another story shows how it came to be."""
        with self.quietly(f"world 0 trains: {', '.join(names)}"):
            for name in names:
                self.register(name, **changes)
            self.prepare_all()
            self.enter_all(after=0.0)

    def grow(self, *names: str) -> None:
        """The live world takes these standbys in; another story shows how."""
        with self.quietly(f"the world grows: {', '.join(names)}"):
            for name in names:
                self.register(name)
            self.tick(0.3)
            self.change_over()

    def change_over(self, after: float = 0.5) -> None:
        """All goes well, from the Prepare that was sent last."""
        self.prepare_all()
        self.agree()
        self.stream_all()
        self.enter_all(after)

    def asked(self, kind: type[Any], key: str, **only: Any) -> tuple[Any, tuple[str, ...]]:
        """The newest message of a kind whose fields are those of ``only``, and all who got one of the same ``key``."""
        sent = [
            (name, one)
            for name, one in self.sent(kind)
            if all(getattr(one, field) == value for field, value in only.items())
        ]
        newest = sent[-1][1]
        return newest, tuple(dict.fromkeys(name for name, one in sent if getattr(one, key) == getattr(newest, key)))

    def prepare(self, *names: str, **figures: Any) -> None:
        """These have prepared what they were asked last."""
        prepare, _ = self.asked(m.Prepare, "generation")
        for name in names:
            self.say(m.Prepared(**{"worker": name, "generation": prepare.generation, "ok": True, **figures}))

    def prepare_all(self) -> None:
        """All involved have prepared."""
        self.prepare(*self.asked(m.Prepare, "generation")[1])

    def agree(self, purpose: str = "cutover") -> None:
        """All voters accept the boundary that was proposed last."""
        proposal, voters = self.asked(m.ProposeBoundary, "boundary", purpose=purpose)
        for name in voters:
            self.vote(name, proposal)

    def vote(self, name: str, proposal: m.ProposeBoundary, refuse_at: int = -1) -> None:
        """A vote; ``refuse_at``: the step that the worker is at, if it cannot stop any more."""
        self.say(
            m.BoundaryVote(
                worker=name,
                boundary=proposal.boundary,
                step=proposal.step,
                accepted=refuse_at < 0,
                current_step=max(0, refuse_at),
            )
        )

    def stream_all(self, names: tuple[str, ...] | None = None) -> None:
        """All involved (or only some) have streamed; each has figures of its own."""
        prepare, involved = self.asked(m.Prepare, "generation")
        for number, name in enumerate(involved if names is None else names, start=1):
            old = name in prepare.source_members
            self.say(
                m.Streamed(
                    worker=name,
                    generation=prepare.generation,
                    ok=True,
                    report=m.TransferReport(
                        seconds=number / 8,
                        plan_seconds=number / 64,
                        bytes_sent=1000 if old else 0,
                        bytes_received=0 if old else 1000 * number,
                        bytes_local=10 * number,
                        staging_peak_bytes=4096 + number,
                        memory_peak_bytes=8192 + number,
                        state_peak_bytes=6144 + number,
                        digests_checked=number,
                        paused_at=self.now if old else 0.0,
                        gap_seconds=0.01 if old else 0.0,
                    ),
                )
            )

    def enter_all(self, after: float = 0.5) -> None:
        """All members enter the world that was committed last."""
        self.now += after
        commit, _ = self.asked(m.Commit, "generation")
        prepare, _ = self.asked(m.Prepare, "generation", generation=commit.generation)
        for name in prepare.members:
            self.say(m.WorldEntered(worker=name, generation=commit.generation, step=commit.step, time=self.now))

    def leave(self, *names: str, reason: str = "told to") -> None:
        """These workers exit."""
        for name in names:
            self.say(m.Leaving(worker=name, reason=reason))

    # ---- what the scheduler shows

    def look(self, *jobs: StandbyJob, room: tuple[Headroom, ...] = (), after: float = 0.0, **changes: Any) -> None:
        """The scheduler is asked about standby jobs."""
        self.now += after
        self.feed(CapacitySeen(self.now, CapacitySnapshot(self.now, jobs, room, **changes)))


def _changed(config: JobConfig, change: Mapping[str, Any]) -> JobConfig:
    for key, value in change.items():
        section, _, name = key.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


# ---- text ----------------------------------------------------------------------------------------------------------


def _input(given: Input) -> str:
    if isinstance(given, FromPeer):
        peer = given.peer.decode()
        return _line(f"{peer}: {_class(given.message)}", _pairs(given.message, left_out={"worker": peer}))
    return _line(_class(given), _pairs(given, left_out={"time": given.time}))


def _actions(actions: list[Action]) -> list[str]:
    lines: list[str] = []
    at = 0
    while at < len(actions):
        action = actions[at]
        at += 1
        if isinstance(action, Send):
            receivers = [action.peer.decode()]
            while at < len(actions) and isinstance(actions[at], Send) and actions[at].message == action.message:
                receivers.append(actions[at].peer.decode())
                at += 1
            lines.append(_line(f"send {' '.join(receivers)}: {_class(action.message)}", _pairs(action.message)))
        elif isinstance(action, Emit):
            fields = to_document(action.event)
            del fields["time"]  # it is not known before the event is written
            lines.append(_line(f"emit {fields.pop('event')}", sorted(fields.items())))
        elif isinstance(action, Journal):
            lines.append(_line(f"journal {_class(action.record)}", _pairs(action.record)))
        else:
            lines.append(_line(_class(action), _pairs(action)))
    return lines


def _line(head: str, pairs: list[tuple[str, Any]], indent: str = "") -> str:
    whole = " ".join([indent + head, *(f"{name}={_text(value)}" for name, value in pairs)])
    if len(whole) <= WIDTH:
        return whole
    lines = [indent + head]
    inner = room = indent + "  "
    for name, value in pairs:
        if isinstance(value, Mapping) and value:
            lines += [room] if room != inner else []
            lines.append(_line(f"{name}:", sorted(value.items()), inner))
            room = inner
            continue
        part = f"{name}={_text(value)}"
        if room != inner and len(room) + 1 + len(part) > WIDTH:
            lines.append(room)
            room = inner
        room += part if room == inner else f" {part}"
    return "\n".join([*lines, room] if room != inner else lines)


def _document(status: Mapping[str, Any]) -> str:
    """As JSON, a line for each key, and for each entry of a list."""
    lines = []
    rounded = json.loads(json.dumps(status), parse_float=lambda text: round(float(text), 6))
    for key, value in sorted(rounded.items()):
        if isinstance(value, list) and value:
            entries = ",\n".join(f"    {json.dumps(entry, sort_keys=True)}" for entry in value)
            lines.append(f"  {json.dumps(key)}: [\n{entries}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, sort_keys=True)}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _class(value: Any) -> str:
    name = type(value).__name__
    return CLASSES.get(name, name)


def _pairs(value: Any, left_out: Mapping[str, Any] | None = None) -> list[tuple[str, Any]]:
    """Name and value of each field that has not its default, in their order; without those of ``left_out``."""
    found = []
    for name, default in _defaults(value).items():
        held = getattr(value, name)
        if isinstance(held, m.TransferReport):  # as it is on the wire
            found += _pairs(held)
        elif held != default and (left_out or {}).get(name, MISSING) != held:
            found.append((FIELDS.get((_class(value), name), name), held))
    return found


def _defaults(value: Any) -> dict[str, Any]:
    """Each field's default, ``MISSING`` where it has none."""
    if isinstance(value, msgspec.Struct):
        return {
            field.name: MISSING
            if field.required
            else field.default
            if field.default is not msgspec.NODEFAULT
            else field.default_factory()
            for field in msgspec.structs.fields(value)
        }
    return {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(value)
    }


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, Enum):
        return _text(value.value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, bytes):
        return _text(value.decode())
    if isinstance(value, str):
        plain = value and value.isprintable() and not set(value) & set(" \"'=,[]{}()")
        return value if plain else json.dumps(value)
    if isinstance(value, Layout):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}={_text(held)}" for key, held in sorted(value.items())) + "}"
    if isinstance(value, frozenset | set):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_text, value)) + "]"
    assert is_dataclass(value) or isinstance(value, msgspec.Struct), value
    return f"{_class(value)}(" + ", ".join(f"{name}={_text(held)}" for name, held in _pairs(value)) + ")"


def _number(value: float) -> str:
    return repr(value) if isinstance(value, int) else f"{round(value, 6):.6f}".rstrip("0").rstrip(".")
