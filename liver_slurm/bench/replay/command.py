"""The whole comparison: calibrate, replay both runs for real, simulate both, and write what came of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import LiverError
from liver_slurm.base.files import replace_file
from liver_slurm.base.narrator import Narrator
from liver_slurm.bench.replay.elastic import ledger_of, replay_elastic
from liver_slurm.bench.replay.measured import Figures, relative, sizes_of_ledger, sizes_of_restarts
from liver_slurm.bench.replay.page import render
from liver_slurm.bench.replay.restarted import read_worlds, replay_restarts
from liver_slurm.bench.replay.simulated import learn, restart_steps, simulate_elastic, simulate_restarts
from liver_slurm.bench.replay.stage import GUARANTEED, Replay
from liver_slurm.report.panels import Panel
from liver_slurm.scheduler.local.process import start
from liver_slurm.simulation.costs import Costs, assumed, to_document

WITHIN = 0.05
"""Share by which a simulated figure may differ from the real one."""
OTHER_SEED = 1000
"""Added to the seed of the trace that costs are measured on: it is another one."""
PARTS = ("elastic", "restarting")
"""Both runs, by the names of their folders."""
SAVES = 10.0
"""Seconds between checkpoints of the restarting run that costs are measured on, which may never restart."""
CALIBRATION, MODULE = "calibration", "liver_slurm.bench.replay"


def calibration_of(replay: Replay, seconds: float) -> Replay:
    """Return the replay that costs are measured on."""
    return replace(replay.named(CALIBRATION), seconds=seconds, seed=replay.seed + OTHER_SEED)


def play(replay: Replay, other: Replay, part: str) -> None:
    """Play one part: ``elastic``, ``restarting``, or either with ``calibration/`` before it.

    Args:
        replay: the trace.
        other: what costs are measured on; for the second part of the trace it must have been played.
        part: which.
    """
    say = Narrator(time.monotonic())
    stage, _, run = part.rpartition("/")
    played = other if stage else replay
    folder = played.named(run)
    shutil.rmtree(folder.folder, ignore_errors=True)  # of one that was broken off
    folder.folder.mkdir(parents=True)
    if run == "elastic":
        found = replay_elastic(folder, say)
    elif stage:
        found = replay_restarts(folder, assumed(replay.config()), say, every_s=SAVES)
    else:
        found = replay_restarts(folder, learned(other)[1], say)
    _save(played.folder / f"{run}.json", found)


def learned(other: Replay) -> tuple[Costs, Costs, float]:
    """Return the costs of the product and of restarts, and what Slurm takes to start a job."""
    restarting = _load(other, "restarting")
    costs, queue_s = learn(other, _load(other, "elastic"), restarting)
    return costs, restart_steps(costs, read_worlds(Path(restarting["folder"]))), queue_s


def compare(replay: Replay, other: Replay, words: Sequence[str], together: bool) -> int:
    """Do all that the folder does not hold yet; returns the exit code: 1 where a figure is not within 5 %.

    Args:
        replay: the trace.
        other: what costs are measured on.
        words: of the command line, for the processes that play parts.
        together: both runs at the same time, each on half of the cores.

    Raises:
        LiverError: a part has failed.
    """
    say = Narrator(time.monotonic())
    for played, stage in ((other, f"{CALIBRATION}/"), (replay, "")):
        missing = [part for part in PARTS if not (played.folder / f"{part}.json").exists()]
        for some in [missing] if together else [[part] for part in missing]:
            say(f"playing {' and '.join(stage + part for part in some) or 'nothing: it is there'}")
            _play_all([stage + part for part in some], replay.folder, words)
    costs, own, queue_s = learned(other)
    simulated = {
        "elastic": simulate_elastic(replay, costs, queue_s),
        "restarting": simulate_restarts(replay, own, queue_s),
    }
    return _write(replay, {part: _load(replay, part) for part in PARTS}, simulated, (costs, own, queue_s), say)


def _play_all(parts: Sequence[str], folder: Path, words: Sequence[str]) -> None:
    """Play parts at the same time, each in a process of its own on its share of the cores."""
    folder.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    share = max(1, len(cores) // max(1, len(parts)))
    processes: list[tuple[str, Path, subprocess.Popen[bytes]]] = []
    try:
        for number, part in enumerate(parts):
            log = folder / f"{part.replace('/', '-')}.log"
            os.sched_setaffinity(0, cores[number * share : (number + 1) * share])  # which a child inherits
            arguments = [*words, "--part", part]
            processes.append((part, log, start(MODULE, arguments, log, environment, signal.SIGTERM)))
        os.sched_setaffinity(0, cores)
        codes = [(part, log, process.wait()) for part, log, process in processes]
    finally:
        os.sched_setaffinity(0, cores)
        for _, _, process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
    for part, log, code in codes:
        if code:
            raise LiverError(f"{part} has failed with exit code {code}; see {log}")


def _load(replay: Replay, part: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((replay.folder / f"{part}.json").read_bytes())
    return found


def _save(path: Path, document: Mapping[str, Any]) -> None:
    replace_file(path, msgspec.json.format(msgspec.json.encode(document), indent=2))


def _panel(name: str, found: Mapping[str, Any]) -> Panel:
    """Return a real run over time."""
    if "run" in found:
        sizes = sizes_of_ledger(ledger_of(Path(found["run"]), found["end"]).account, found["begin"])
    else:
        sizes = sizes_of_restarts(read_worlds(Path(found["folder"])), found["begin"])
    ettr, changes = found["figures"]["ettr"], found["figures"]["changes"]
    return Panel(f"{name}: {ettr:.1%} of the time in steps that count, {changes:.0f} changes", sizes)


def _write(
    replay: Replay,
    real: Mapping[str, Mapping[str, Any]],
    simulated: Mapping[str, Figures],
    costs: tuple[Costs, Costs, float],
    say: Callable[[str], None],
) -> int:
    """Write everything to ``replay.json`` and say it; returns the exit code."""
    cases = {}
    for name, found in simulated.items():
        differs = relative(Figures(**real[name]["figures"]), found)
        cases[name] = {"real": real[name]["figures"], "simulated": found.document(), "differs": differs}
        for figure, share in differs.items():
            was, is_ = real[name]["figures"][figure], getattr(found, figure)
            say(f"{name}: {figure} {was:.4f}, simulated {is_:.4f}: {share:+.1%} (allowed: {WITHIN:.0%})")
    worst = max(abs(share) for case in cases.values() for share in case["differs"].values())
    setting = replay.setting()
    document = {
        "seconds": replay.seconds, "nodes": replay.nodes, "notice_s": replay.notice, "seed": replay.seed,
        "reclaims": len(replay.reclaims), "offered_device_s": setting.offered_device_s(replay.config()),
        "cases": cases, "worst": worst, "within": worst <= WITHIN, "queue_s": costs[2],
        "costs": to_document(costs[0]), "costs_restarting": to_document(costs[1]),
    }  # fmt: skip
    _save(replay.folder / "replay.json", document)
    offered = [(time, GUARANTEED + nodes) for time, nodes in setting.trace.counts()]
    panels = [_panel(name, found) for name, found in real.items()]
    replace_file(replay.folder / "replay.html", render(panels, offered, document).encode())
    say(f"written: {replay.folder / 'replay.json'}, and replay.html for people")
    return 0 if worst <= WITHIN else 1
