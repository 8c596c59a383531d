"""Threads that fail together: the first error is everybody's, and peers are hung up on unless somebody will say why."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.crew import Crew

PATIENCE = 60.0


class Watched(Crew):
    """Counts how often it gave up."""

    def __init__(self) -> None:
        self.given_up = threading.Semaphore(0)
        self.times = 0
        super().__init__(self._note)

    def _note(self) -> None:
        self.times += 1
        self.given_up.release()


@pytest.fixture
def crew() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.join()
    assert made.idle


def fails(error: BaseException) -> None:
    raise error


def test_the_end_is_waited_for(crew: Watched) -> None:
    go, done = threading.Event(), []
    crew.start([lambda: done.append(go.wait(PATIENCE))] * 3)
    assert not crew.idle
    go.set()
    crew.wait(lambda: crew.idle)
    assert (done, crew.times) == ([True] * 3, 0)


def test_it_starts_once(crew: Watched) -> None:
    done: list[int] = []
    crew.start([lambda: done.append(1)])
    crew.wait(lambda: crew.idle)
    crew.start([lambda: done.append(2)])
    crew.join()
    assert done == [1]


def test_the_first_error_wins(crew: Watched) -> None:
    second = threading.Event()

    def later() -> None:
        second.wait(PATIENCE)
        raise TransferError("a consequence")

    crew.start([later, lambda: fails(TransferError("the cause\nand its story"))])
    assert crew.given_up.acquire(timeout=PATIENCE)
    second.set()
    assert crew.given_up.acquire(timeout=PATIENCE)
    crew.join()
    for _ in range(2):
        with pytest.raises(TransferError, match=r"^the cause$") as raised:
            crew.wait(lambda: crew.idle)
        assert isinstance(raised.value.__cause__, TransferError)


def test_who_waits_is_told_and_nobody_is_hung_up_on(crew: Watched) -> None:
    go = threading.Event()

    def failing() -> None:
        go.wait(PATIENCE)
        raise TransferError("gone")

    crew.start([failing])
    crew.awaited()
    go.set()
    with pytest.raises(TransferError, match=r"^gone$"):
        crew.wait(lambda: False)
    crew.join()
    assert crew.times == 0, "whoever waits says why first"


def test_nobody_waits_so_peers_are_hung_up_on(crew: Watched) -> None:
    crew.start([lambda: fails(TransferError("gone"))])
    assert crew.given_up.acquire(timeout=PATIENCE)
    with pytest.raises(TransferError, match=r"^gone$"):
        crew.wait(lambda: crew.idle)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("odd"), "odd"),
        (AssertionError(), "AssertionError"),
        (MemoryError(), "MemoryError"),
        (KeyError(3), "3"),
    ],
)
def test_whatever_goes_wrong_is_said_in_a_line(
    crew: Watched, caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    crew.start([lambda: fails(error)])
    with pytest.raises(TransferError, match=rf"^{said}") as raised:
        crew.wait(lambda: False)
    assert raised.value.__cause__ is error
    assert "in fails\n    raise error" in caplog.text, "and where, in the log"


def test_what_has_failed_does_not_start(crew: Watched) -> None:
    crew.fail(TransferError("given up"))
    crew.fail(TransferError("again"))
    crew.start([lambda: fails(AssertionError("it ran"))])
    with pytest.raises(TransferError, match="given up"):
        crew.wait(lambda: crew.idle)
    assert crew.times == 0


def test_a_change_is_looked_at(crew: Watched) -> None:
    reached = threading.Event()
    waiting = threading.Thread(target=crew.wait, args=(reached.is_set,))
    waiting.start()
    reached.set()
    crew.notify()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
