"""What megatron-core is told of a layout: its ranks are in the groups that megatron itself would put them into."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from liver_slurm.engine.megatron import compat
from liver_slurm.parallel.layout import GROUPS, Axis, Layout

with compat.imports():
    from megatron.core.parallel_state import RankGenerator

ORDER = "tp-cp-ep-dp-pp"
"""megatron-core's by default."""
DENSE: dict[str, tuple[Axis, ...]] = {
    "tp": GROUPS["tp"],
    "cp": GROUPS["cp"],
    "dp": GROUPS["dp"],
    "dp-cp": GROUPS["dp_cp"],
    "tp-cp": GROUPS["tp_cp"],
    "pp": GROUPS["pp"],
    "tp-pp": GROUPS["mp"],
}
EXPERT: dict[str, tuple[Axis, ...]] = {
    "tp": GROUPS["etp"],
    "ep": GROUPS["ep"],
    "dp": GROUPS["edp"],
    "tp-ep": GROUPS["tp_ep"],
    "tp-ep-pp": GROUPS["tp_ep_pp"],
}


@pytest.mark.parametrize(
    "text",
    [
        "tp2pp2dp3",
        "tp2cp2pp2ep2dp2",
        "tp2pp1etp1dp1",
        "tp4pp1ep4etp1dp1",
        "tp4pp2ep2etp1dp2",
        "tp2cp2pp2ep4etp1dp2",
        "tp1pp2etp2dp4",
        "tp4pp1ep3etp2dp3",
        "tp2pp2ep2etp3dp6",
        "tp4pp1etp6dp3",
    ],
)
def test_groups_are_megatrons_own(text: str) -> None:
    layout = Layout.parse(text)
    dense = RankGenerator(tp=layout.tp, ep=1, dp=layout.dp, pp=layout.pp, cp=layout.cp, order=ORDER)
    expert = RankGenerator(tp=layout.etp, ep=layout.ep, dp=layout.edp, pp=layout.pp, cp=1, order=ORDER)
    assert dense.get_ranks("pp") == expert.get_ranks("pp"), "as megatron asserts itself"
    for generator, groups in ((dense, DENSE), (expert, EXPERT)):
        for token, axes in groups.items():
            theirs = sorted(map(sorted, generator.get_ranks(token)))
            assert sorted(layout.groups(*axes).tolist()) == theirs, token
            for row in theirs:
                assert all(layout.group(rank, *axes) == row for rank in row)
