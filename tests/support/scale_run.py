"""What `make test-scale` does, without pytest: ``python3 tests/support/scale_run.py FOLDER [--nodes N] [--seconds S]``.

For a machine on which nothing is installed: PYTHONPATH has this checkout. FOLDER/scale.json and scale.txt have the
figures, sdiag-before.txt, sdiag-after.txt and slurmctld.log what slurmctld says of that time, and the run directory
beside them has its event log. ``--company plain`` and ``none`` play the same load without an elastic run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import msgspec
from scale_lab import SITE, measure
from scale_measured import COMPANY

from liver_slurm.base import interrupts
from liver_slurm.devcluster.lifecycle import down, up
from liver_slurm.devcluster.spec import ClusterSpec


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--company", choices=COMPANY, default="run", help="what is beside production")
    parser.add_argument("--alone", type=float, default=90.0, help="seconds before there is any")
    parser.add_argument("--ramp", type=float, default=60.0, help="seconds from then until anything counts")
    parser.add_argument("--scheduler", action="append", help="one of SchedulerParameters, in place of the site's")
    parser.add_argument("--setting", action="append", help="a line of slurm.conf, in place of the site's")
    options = parser.parse_args()
    asked = {"scheduler": options.scheduler, "extra": options.setting}
    changes = {key: tuple(value) for key, value in asked.items() if value is not None}
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True)
    with interrupts.temporary_folder("liver-scale-", keep_failed=True) as temporary:
        spec = ClusterSpec(
            directory=temporary / "cluster", nodes=options.nodes, cpus_per_node=1, gpus_per_node=0, grace=60,
            send_user_signal=True, **{**SITE, **changes},
        )  # fmt: skip
        os.environ["SLURM_CONF"] = str(up(spec).slurm_conf)
        try:
            found = measure(
                folder, options.nodes, options.seconds, alone=options.alone, ramp=options.ramp, company=options.company
            )
        finally:
            down(spec.directory)
    (folder / "scale.json").write_bytes(msgspec.json.format(msgspec.json.encode(found.document())))
    (folder / "scale.txt").write_text("\n".join(found.lines()) + "\n")
    print((folder / "scale.txt").read_text(), end="")
    return 0


if __name__ == "__main__":
    interrupts.run_command(main)
