"""When another try is in vain."""

from __future__ import annotations

from liver_slurm.policy.setbacks import MOST, MOST_ALIKE, Breakdown, Setback, after


def broken(generation: int, step: int = 8, reason: str = "ValueError: bad", said: bool = True) -> Breakdown:
    return Breakdown(generation, step, (f"live-{generation}",), reason, said)


def told(*breakdowns: Breakdown) -> Setback:
    setback = None
    for one in breakdowns:
        setback = after(setback, one)
    assert setback is not None
    return setback


def test_the_same_words_at_the_same_step() -> None:
    words = [broken(number, reason=f"OSError: port {4000 + number}") for number in range(MOST_ALIKE)]
    assert told(*words[:-1]).why_stop(100) is None
    why = told(*words).why_stop(100)
    assert why == (
        f"step 9 has failed {MOST_ALIKE} times in a row at live-0, live-1, live-2, each time with «OSError: port 4002»"
    )


def test_other_words_are_another_failure() -> None:
    words = [broken(number, reason=f"Error: {'x' * number}") for number in range(MOST)]
    assert told(*words[:-1]).why_stop(100) is None
    why = told(*words).why_stop(100)
    assert why is not None
    assert "the last time with «Error: xxxx»" in why


def test_deaths_without_a_word_are_forgiven_longer() -> None:
    deaths = [broken(number, reason="killed by SIGKILL", said=False) for number in range(MOST)]
    assert told(*deaths[:-1]).why_stop(100) is None
    assert told(*deaths).why_stop(100) is not None


def test_one_world_counts_once() -> None:
    assert told(*[broken(0)] * 10).times == 1


def test_steps_that_are_trained_again_do_not_count() -> None:
    """On the way back from a checkpoint a node may die: the step is still the one that nothing came beyond."""
    setback = told(broken(0), broken(1, step=3, reason="node failed", said=False), broken(2))
    assert (setback.last.step, setback.times, setback.alike) == (8, 2, 2)


def test_a_step_further_is_progress() -> None:
    assert told(broken(0), broken(1), broken(2, step=9)).times == 1


def test_an_earlier_step_that_fails_again_and_again_is_counted_for_itself() -> None:
    first = broken(0, step=100, reason="node failed", said=False)
    again = [broken(number, step=90) for number in range(1, MOST_ALIKE + 1)]
    assert told(first, *again[:-1]).why_stop(100) is None
    why = told(first, *again).why_stop(100)
    assert why is not None
    assert why.startswith(f"step 91 has failed {MOST_ALIKE} times in a row")


def test_an_earlier_step_that_is_passed_is_forgotten() -> None:
    back = told(broken(0), broken(1, step=3), broken(2, step=3), broken(3), broken(4, step=3))
    assert (back.times, back.before and back.before.times) == (2, 1)


def test_what_fails_behind_the_last_step_is_not_called_a_step() -> None:
    why = told(*[broken(number, reason="no space") for number in range(MOST_ALIKE)]).why_stop(8)
    assert why is not None
    assert why.startswith(f"what follows step 8, the last one, has failed {MOST_ALIKE} times in a row")
