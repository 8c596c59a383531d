"""A worker's session: what is said when, and what is said again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from liver_slurm.protocol import messages as m
from liver_slurm.protocol.session import Session
from liver_slurm.protocol.wire import decode_to_coordinator, decode_to_worker, encode

BEAT = m.Heartbeat(worker="w", generation=1, step=5, step_seconds=1.0, warm=True, targets={})
NOTICE = m.Notice(worker="w", reason="SIGTERM", time=1.0)


@pytest.fixture
def session() -> Session:
    made = Session()
    made.hear(m.Welcome(run_id="r", epoch=3))
    return made


def prepare(generation: int) -> m.Prepare:
    return m.Prepare(
        epoch=3, generation=generation, layout="tp1pp1dp1", members=["w"], source_generation=1, store_host="h",
        store_port=1,
    )  # fmt: skip


def test_nothing_is_said_before_it_is_welcome() -> None:
    session = Session()
    assert session.say(BEAT) == session.say(NOTICE) == session.say(BEAT) == []
    beat = msgspec.structs.replace(BEAT, notice=NOTICE)
    assert session.hear(m.Welcome(run_id="r", epoch=3)) == (False, [NOTICE, beat]), "one heartbeat is enough"


def test_a_restarted_coordinator_hears_again_what_lasts(session: Session) -> None:
    entered = m.WorldEntered(worker="w", generation=1, step=5, time=1.0)
    session.say(m.Prepared(worker="w", generation=1, ok=True))
    session.say(entered)
    session.hear(m.Alive(epoch=4))
    assert session.epoch == -1
    assert session.hear(m.Welcome(run_id="r", epoch=4)) == (False, [entered])


def test_one_that_was_taken_for_lost_registers_again(session: Session) -> None:
    assert session.hear(m.Alive(epoch=3)) == (False, [])
    assert session.epoch == 3
    session.hear(m.Alive(epoch=3, known=False))
    assert session.epoch == -1


def test_messages_of_another_epoch_are_dropped(session: Session) -> None:
    assert session.hear(m.Commit(epoch=2, generation=1, step=5)) == (False, [])
    assert session.rejected == 1
    assert session.hear(m.Refused(reason="x")) == (True, [])


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (prepare(2), m.Prepared(worker="w", generation=2, ok=False, error="x")),
        (m.ConfirmBoundary(epoch=3, boundary=1, step=7, purpose="cutover", generation=2),
         m.Streamed(worker="w", generation=2, ok=True)),
        (m.Commit(epoch=3, generation=2, step=7), m.WorldEntered(worker="w", generation=2, step=7, time=1.0)),
    ],
)  # fmt: skip
def test_an_order_that_comes_again_has_its_answer(session: Session, order: Any, answer: Any) -> None:
    assert session.answer_to(order) is None, "it is still being carried out"
    session.say(answer)
    assert session.answer_to(order) == answer
    session.say(type(answer)(**{**{name: getattr(answer, name) for name in answer.__struct_fields__}, "generation": 3}))
    assert session.answer_to(order) is None, "it has been overtaken"


def test_a_checkpoint_is_no_vote(session: Session) -> None:
    session.say(m.Streamed(worker="w", generation=2, ok=True))
    final = m.ConfirmBoundary(epoch=3, boundary=4, step=9, purpose="checkpoint", generation=2)
    assert session.answer_to(final) is None


def test_a_heartbeat_repeats_the_last_notice_and_the_end(session: Session) -> None:
    assert session.say(BEAT) == [BEAT]
    session.say(NOTICE)
    session.say(m.Finished(worker="w", step=5))
    (beat,) = session.say(BEAT)
    assert isinstance(beat, m.Heartbeat)
    assert (beat.notice, beat.finished) == (NOTICE, True)
    assert decode_to_coordinator(encode(beat)) == beat


def test_in_steady_state_messages_are_what_earlier_versions_know() -> None:
    old = {"worker": "w", "generation": 1, "step": 5, "step_seconds": 1.0, "warm": True}
    assert {"rejected", "targets", "boundaries", "finished", "notice"} <= set(m.Heartbeat.__struct_fields__) - set(old)
    assert b"known" not in encode(m.Alive(epoch=1))
    assert b"held" not in encode(m.Commit(epoch=1, generation=1, step=1))
    assert b"boundaries" not in encode(BEAT)


def test_a_field_that_is_not_known_is_not_read() -> None:
    later = encode(m.Alive(epoch=1)).replace(b"\x82", b"\x83", 1) + b"\xa5later\x01"
    assert decode_to_worker(later) == m.Alive(epoch=1)
