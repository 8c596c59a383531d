"""What is made once of an object that is never changed."""

from __future__ import annotations

from liver_slurm.base.once import KEPT, OncePer


def test_it_is_made_once_of_each_of_the_last_objects() -> None:
    made: list[list[int]] = []

    def make(given: list[int]) -> int:
        made.append(given)
        return sum(given)

    total = OncePer(make)
    one, other = [1, 2], [1, 2]
    assert (total(one), total(one), total(other), total(one)) == (3, 3, 3, 3)
    assert [given is one for given in made] == [True, False], "equal objects are two"
    for number in range(KEPT - 1):
        total([number])
    assert (total(other), len(made)) == (3, KEPT + 1)
    total(one)
    assert made[-1] is one, "it was forgotten, as others were asked for since"
