"""``bench policies``: each policy on the same nodes, and what those that know more make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.bench import policies
from liver_slurm.bench.omniscient import informed, never, priced
from liver_slurm.cli.main import main
from liver_slurm.policy import engine
from liver_slurm.simulation.regimes import REGIMES, Drawn, draw

PLACE = policies._Place("volatile", REGIMES["volatile"])


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw(REGIMES["volatile"], 10_000, 0.4)


def test_who_knows_more_makes_more_of_the_same_nodes(drawn: Drawn) -> None:
    greedy, leaving, knowing, foreseeing = (
        policies._goodput(PLACE, drawn, policy) for policy in ("greedy", never, informed(drawn), None)
    )
    assert leaving == pytest.approx(1.0, abs=1e-3)
    assert greedy < foreseeing
    assert 1.0 < knowing < foreseeing


def test_a_price_keeps_a_run_from_taking(drawn: Drawn) -> None:
    dear, cheap = (policies._goodput(PLACE, drawn, priced(price)) for price in (1e6, 0.0))
    assert dear == pytest.approx(1.0, abs=1e-3)
    assert cheap == policies._goodput(PLACE, drawn, "cost-aware")


def test_a_policy_that_is_given_is_there_for_the_block_only() -> None:
    with engine.given("mine", never):
        assert "mine" in engine._GIVEN
    with pytest.raises(BadInput, match="there is no policy 'mine'"):
        engine.named("mine")


def test_real_traces_are_simulated_with_a_few_of_their_nodes(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("seconds,nodes\n0,2\n600,9\n4000,1\n7200,1\n")
    place = policies._Place("counts", REGIMES["free"], path)
    drawn = [place.draw(seed) for seed in range(4)]
    nodes = [frozenset(span.node for span in one.setting.trace.spans) for one in drawn]
    assert {len(one) for one in nodes} == {policies.NODES}
    assert len(set(nodes)) > 1
    assert policies._goodput(place, drawn[0], "greedy") > 1.2


def test_it_says_whether_what_was_asked_for_holds() -> None:
    cases = [
        {"part": "volatile, logs of 9 decisions", "policy": name, "over greedy": over}
        for name, over in (
            ("oracle: true chances", 0.18), ("oracle: when each node goes", 0.23), ("advisor, gate", 0.05)
        )
    ]  # fmt: skip
    (said,) = policies._said(cases)
    assert said.startswith(
        "volatile, logs of 9 decisions: gated advisor +0.050 over greedy; not below by more than 0.005: "
    )
    assert said.endswith("yes; above by 0.08: NO; attainable: +0.180, with foresight +0.230")


def test_traces_are_for_this_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "advisor", "--trace", "x"]) == 2
    assert "bench advisor: --trace is not allowed; it is for bench policies" in capsys.readouterr().err
