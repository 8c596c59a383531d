"""Survivor of a broken world: leaves its collectives, says how far it has come, and catches up with the others.

A world is broken when one of its collectives has failed, or when the coordinator says so. Nobody trains in it again:
the training thread is parked until the next world is there, which is made of what the survivors hold.
"""

from __future__ import annotations

import logging
import threading

from liver_slurm.base.errors import TransferError, first_line
from liver_slurm.parallel import c10d
from liver_slurm.protocol.messages import Halt, Parked
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.directives import Directives, Due, Enter, Leave
from liver_slurm.worker.mirroring import Holds
from liver_slurm.worker.target_world import TargetWorld
from liver_slurm.worker.train_loop import TrainLoop

log = logging.getLogger(__name__)


class Survivor:
    """One worker when its world is broken."""

    def __init__(self, name: str, loop: TrainLoop, directives: Directives, control: ControlThread) -> None:
        self._name, self._loop, self._directives, self._control = name, loop, directives, control
        self._aborted = -1
        """Generation whose groups are aborted, or about to be."""
        self._lock = threading.Lock()
        self._why = ""

    # ---- called by the control thread

    def halt(self, message: Halt, target: TargetWorld | None) -> None:
        """Have the training thread leave its collectives, if it is in the world that is broken.

        Args:
            target: that world, if this worker was to join it; it may be in its first step, and not have entered it yet.
        """
        if not self._directives.halted:
            self._why = message.reason
        self._directives.halt(message.generation)
        if self._loop.generation == message.generation:
            threading.Thread(target=self._abort, name="abort", daemon=True).start()
        elif target is not None:
            threading.Thread(target=target.leave_collectives, name="abort", daemon=True).start()

    # ---- called by the training thread

    def failed(self, error: RuntimeError) -> None:
        """Note that a step of the live world has failed.

        Raises:
            RuntimeError: the given one, as it does not come of a broken world.
        """
        if not (self._directives.halted or c10d.is_broken_group(error)):
            raise error
        text = first_line(error)
        log.warning("generation %d is broken: %s", self._loop.generation, text)
        self._why = self._why or text
        self._directives.halt(self._loop.generation)

    def park(self) -> Leave | Enter | Due:
        """Say how far this worker has come, and wait for the coordinator's word."""
        live, loop = self._loop.live, self._loop
        assert live is not None, "only members of a world can be parked"
        self._abort()  # peers that wait for this rank get out, too
        kept = loop.mirrors.holds() if loop.mirrors is not None else Holds()
        report = Parked(
            worker=self._name,
            generation=loop.generation,
            step=loop.step,
            reached=live.reached,
            error=self._why,
            mirrors={name: (extent.step, extent.ahead) for name, extent in kept.replayed.items()},
            verified={**kept.verified},
            own=[*kept.own],
            kept=[*kept.snapshots],
        )
        log.info("parked at step %d of generation %d: %s", loop.step, loop.generation, live.reached)
        self._control.post(report)
        directive = self._directives.idle(parked=True)
        self._why = ""
        return directive

    def catch_up(self, step: int, scribe: bool, back: bool = False) -> None:
        """Bring the live world's state to ``step`` completed steps, as some survivor has it, and the metrics with it.

        Args:
            step: steps that the next world begins with.
            scribe: whether this worker adds to the metrics what a lost one did not write any more.
            back: the step is one that snapshots were taken at.

        Raises:
            TransferError: the state cannot get there.
        """
        loop, live = self._loop, self._loop.live
        if live is None:
            return
        if back:
            if loop.step != step or live.reached == "torn":
                if loop.mirrors is None:
                    raise TransferError(f"this worker has put nothing by of step {step}")
                loop.mirrors.go_back(live, step)
                log.info("went back to the state after %d steps", step)
        elif loop.step == step - 1 and live.reached == "gradients":
            live.finish_update()
            loop.step = step
            log.info("made the update of step %d, which others had made", step)
        if loop.step != step and not back:
            raise TransferError(f"this worker has completed {loop.step} steps, and the next world begins with {step}")
        if scribe:
            loop.write_missing_metrics(step)

    def _abort(self) -> None:
        """End every wait in the live world's collectives, here and at the peers; once, from whichever thread."""
        live = self._loop.live
        if live is None:
            return
        with self._lock:
            if self._aborted < live.world.membership.generation:
                self._aborted = live.world.membership.generation
                if self._loop.mirrors is not None:
                    self._loop.mirrors.abort()
                live.world.abort()
