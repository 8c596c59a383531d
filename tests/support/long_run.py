"""Files of a long run, as the run itself would write them: ``python tests/support/long_run.py FOLDER [STEPS]``.

A step a second and a change each 500 seconds on average: a million steps are eleven days with two thousand changes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from ledger_stories import Story

from liver_slurm.config.load import load_job
from liver_slurm.rundir import events as e
from liver_slurm.rundir.metrics import StepMetrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, read_run_info

JOB_FILE = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
BETWEEN = 500
"""Steps from one change to the next."""


class LongStory(Story):
    """A story whose steps go to a file instead of the memory."""

    def __init__(self, created: float, metrics: Path) -> None:
        super().__init__(now=created, created=created)
        self._stream = metrics.open("wb")

    def train(self, count: int, seconds: float = 1.0, gap: float = 0.01, first: float = 0.0) -> None:
        """Train steps, each of them a line."""
        lines = []
        for _ in range(count):
            self.trained += 1
            end = self.now + seconds + 0.001 * (self.trained % 7)
            lines.append(self._line(self.now, end))
            self.now = end + gap
        # What a change asks of the steps is the end of the last one.
        self.rows = [{"end": self.now - gap}]
        self._stream.write(b"\n".join(lines) + b"\n")

    def end(self, outcome: str = "finished") -> None:
        """The run ends."""
        super().end(outcome)
        self._stream.close()

    def _line(self, start: float, end: float) -> bytes:
        return msgspec.json.encode(
            StepMetrics(
                step=self.trained, loss=2.0 + 8.0 / (1.0 + self.trained / 1000), grad_norm=1.23456789, lr=3e-4,
                tokens=1 << 20, consumed_samples=512 * self.trained, generation=self.generation,
                layout=f"tp1pp1dp{len(self.world)}", start=start, end=end, tokens_per_s=(1 << 20) / (end - start),
                tflops=412.3456, mfu=0.4169, data_s=0.00123,
            )
        )  # fmt: skip


def write_long_run(folder: Path, steps: int) -> RunDir:
    """Write a run of so many steps below a folder; returns its run directory."""
    run_dir = create_run(load_job(JOB_FILE, [f"job.run_root={folder}", f"train.steps={steps}"], workers=2))
    story = LongStory(read_run_info(run_dir).created, run_dir.metrics)
    story.start(30.0, 20.0, 5.0)
    story.say(e.CapacityChanged(workers={"scavenger": 2}))
    while story.trained + 2 * BETWEEN <= steps:
        story.arrive(0, 15.0)
        story.train(BETWEEN - 2)
        story.change(0.25)
        name = story.world[-1]
        story.train(BETWEEN - 2)
        story.notice(name)
        story.change(0.04, "notice", (name,))
        story.leave(name)
    story.train(steps - story.trained)
    story.end()
    run_dir.events.write_bytes(b"".join(msgspec.json.encode(_document(event)) + b"\n" for event in story.events))
    return run_dir


def _document(event: Any) -> dict[str, Any]:
    return e.to_document(event)


def main(arguments: list[str]) -> int:
    """Write the run and say where it is."""
    if not 1 <= len(arguments) <= 2:
        print("long_run.py: FOLDER and perhaps the number of steps", file=sys.stderr)
        return 2
    print(write_long_run(Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 1_000_000).path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
