"""``python -m liver_slurm.bench.replay``: a trace of reclaims for real, beside restarts, and both simulated."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from liver_slurm.base import interrupts
from liver_slurm.base.errors import LiverError

DESCRIPTION = """\
Replay a trace on a Slurm cluster of this machine that is made for it: production takes a node each 30 to 60 s. One run
is the product's, another restarts from checkpoints; both are also simulated, with costs from a shorter replay of
another trace. Figures of all four go to FOLDER/replay.json. What FOLDER has of an earlier call is not made again. The
exit code is 1 where a simulated figure differs from the real one by more than 5 %."""


def _replay() -> int:
    parser = argparse.ArgumentParser(prog="liver_slurm.bench.replay", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="for run directories and figures")
    parser.add_argument("--seconds", type=float, default=900.0, metavar="S", help="of the trace (default: 900)")
    parser.add_argument("--calibrate", type=float, default=300.0, metavar="S", help="of the other one (default: 300)")
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="reclaimable ones (default: 2)")
    parser.add_argument("--notice", type=int, default=10, metavar="S", help="GraceTime of their jobs (default: 10)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the trace (default: 0)")
    parser.add_argument("--together", action="store_true", help="both runs at once, each on half of the cores")
    parser.add_argument("--part", metavar="NAME", help="play this part only: elastic, calibration/restarting, …")
    options = parser.parse_args()
    from liver_slurm.bench.replay.command import calibration_of, compare, play
    from liver_slurm.bench.replay.stage import Replay

    replay = Replay(options.folder.absolute(), options.seconds, options.nodes, options.notice, options.seed)
    other = calibration_of(replay, options.calibrate)
    try:
        if options.part is None:
            return compare(replay, other, sys.argv[1:], options.together)
        play(replay, other, options.part)
        return 0
    except LiverError as error:
        print(f"liver-slurm: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    interrupts.run_command(_replay)
