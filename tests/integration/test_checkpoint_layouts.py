"""A checkpoint saved in one layout and loaded in another is the same state, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("checkpoint_worker.py")
LAYOUTS = "tp1pp1dp1,tp2pp1dp1,tp1pp2dp1,tp1pp1dp3"
MIXED = "tp1pp1dp1,tp2pp1dp1,tp1pp1ep2dp2,tp1cp2pp1dp1"
"""For a mixture of experts."""
WHOLE = "tp2pp1dp1,tp2pp1ep2etp1dp1,tp1pp1ep2dp2,tp1pp1dp3"
"""For one whose experts may be whole where all else is cut."""
INTERLEAVED = "tp1pp1dp1,tp1pp2vpp2dp1,tp2pp1dp1,tp1pp2dp1"
"""For a model of four layers."""
WITH_MUON = "tp1pp1dp2,tp2pp1dp1,tp1pp2dp1,tp1pp1dp3"
MODELS = {
    LAYOUTS: {"ema_decay": 0.8},
    MIXED: {"experts": True},
    WHOLE: {"experts": True},
    INTERLEAVED: {"layers": 4, "moments_precision": "bf16"},
    WITH_MUON: {"optimizer": "muon", "ema_decay": 0.8},
}
WORKERS = 3
PATIENCE = 900.0


@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize(
    ("precision", "distributed", "layouts"),
    [
        ("bf16", True, LAYOUTS),
        ("fp32", False, MIXED),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("bf16", False, WITH_MUON),
                ("bf16", True, INTERLEAVED),
                ("fp32", True, LAYOUTS),
                ("bf16", False, LAYOUTS),
                ("bf16", True, MIXED),
                ("bf16", True, WHOLE),
                ("fp32", False, WHOLE),
                ("fp32", False, INTERLEAVED),
            )
        ),
    ],
)
def test_every_layout_loads_what_every_other_saved(
    precision: str, distributed: bool, layouts: str, tmp_path: Path
) -> None:
    # LS-25
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    support = str(Path(__file__).parents[1] / "support")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": support}
    arguments = [str(store.port), layouts, precision, str(distributed), json.dumps(MODELS[layouts]), str(tmp_path)]
    logs = [tmp_path / f"w{index}.log" for index in range(WORKERS)]
    processes = []
    for log in logs:
        with log.open("w") as stream:
            command = [sys.executable, str(WORKER), log.stem, *arguments]
            processes.append(subprocess.Popen(command, stdout=stream, stderr=stream, env=environment))
    try:
        codes = [process.wait(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * WORKERS, "\n".join(f"==== {log.name}\n{log.read_text()[-3000:]}" for log in logs)
    assert int(logs[0].read_text().splitlines()[-1]) > 0
