"""``bench policies`` with several seeds in several processes."""

from __future__ import annotations

import json

import pytest

from liver_slurm.base.errors import LiverError
from liver_slurm.bench import policies, policy_seeds
from liver_slurm.cli.main import main
from liver_slurm.simulation.regimes import Drawn, Regime

TINY = policies._Sizes(decisions=20, logs=1, judged=2, twins=2)


def row(policy: str, seed: int, goodput: float, over: float, gate: str = "") -> dict[str, object]:
    found = {"part": "volatile", "policy": policy, "goodput": goodput, "over greedy": over, "gate opens": gate}
    return {**found, "from": 0.0, "to": 0.0, "seed": seed}


def test_each_seed_is_one_observation() -> None:
    rows = [
        row("greedy", 1, 0.9, 0.0), row("advisor, gate", 1, 1.1, 0.2, "1 of 1"), {"part": "twins", "log": 0},
        row("greedy", 2, 1.0, 0.0), row("advisor, gate", 2, 1.0, 0.0, "0 of 1"),
    ]  # fmt: skip
    greedy, advisor = policy_seeds.over_seeds(rows)
    assert (greedy["goodput"], greedy["from"], greedy["to"], greedy["gate opens"]) == (0.95, 0.0, 0.0, "")
    assert (advisor["over greedy"], advisor["gate opens"]) == (pytest.approx(0.1), "1 of 2")
    assert advisor["from"] == pytest.approx(0.1 - 12.706 * 0.1, abs=1e-3), "Student's t of one degree of freedom"


def test_other_seeds_have_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = policies.draw

    def noted(regime: Regime, seed: int, days: float) -> Drawn:
        drawn.append(seed)
        return draw(regime, seed, days / 8)

    monkeypatch.setattr(policies, "draw", noted)
    rows = policies.compared(policies.make_places(())[2], TINY, 3)
    assert {row["seed"] for row in rows} == {3}
    first = 3 * policies.APART
    assert set(drawn) >= {first, first + policies.NEW, first + policies.OTHER}
    assert min(drawn) == first
    assert max(drawn) < first + policies.APART


@pytest.mark.long
def test_processes_find_what_one_finds(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for jobs in ("1", "2"):
        assert main(["bench", "policies", "--quick", "--seed", "7", "--jobs", jobs, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert (found[0]["seed"], found[0]["seeds"], len(found[0]["said"])) == (7, 1, 3)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(LiverError, match=r"bench policies: partition 99 with seed 0 failed: IndexError: .*"):
        policy_seeds._in_process(policy_seeds.Part(True, (), 99, 0, several=False))


def test_seeds_are_for_this_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", "--seeds", "2"]) == 2
    assert "bench plan: --seeds is not allowed; it is for bench policies" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "policies", "--jobs", "0"])
    assert "0 is not 1 or more" in capsys.readouterr().err
