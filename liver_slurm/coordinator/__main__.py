"""``python -m liver_slurm.coordinator RUN_DIR``: the coordinator of one run.

Exit codes: 0 the run finished, 1 it failed for good, 2 bad input, 3 it was cancelled, 4 another job goes on with it, 70
the coordinator itself broke down; after the last one, and after a signal, it may be started again and goes on from its
journal. With ``--decided-codes``, 10 is added to the codes that say what the run's outcome is; any other code, such as
the 1 of a Python that cannot import us, then says nothing of the run.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from liver_slurm.base.clock import Clock, SystemClock
from liver_slurm.base.errors import DECIDED, BadInput, ExitCode, LiverError
from liver_slurm.base.network import reachable_host
from liver_slurm.base.open_files import allow_many_files
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.config.layouts import live_workers
from liver_slurm.config.load import read_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import most_workers
from liver_slurm.coordinator.core import client_requests
from liver_slurm.coordinator.core.io import Action, Emit, Finish
from liver_slurm.coordinator.core.records import BegunAnew as BegunAnewRecord
from liver_slurm.coordinator.core.records import (
    Committed,
    EpochStarted,
    Record,
    StandbyLaunched,
    last_outcome,
    next_epoch,
    why_restart,
    why_strange,
)
from liver_slurm.coordinator.core.state import Settings
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.runtime import restart
from liver_slurm.coordinator.runtime.journal import Fenced, Lease, acquire
from liver_slurm.coordinator.runtime.loop import Loop
from liver_slurm.coordinator.runtime.restart import CheckpointCalls
from liver_slurm.coordinator.runtime.scheduler_calls import Scheduler, SchedulerCalls
from liver_slurm.observability.outside import Outside
from liver_slurm.policy import engine
from liver_slurm.protocol.messages import PROTOCOL, ResizeRequest
from liver_slurm.protocol.rendezvous_server import RendezvousServer
from liver_slurm.protocol.server import ControlServer
from liver_slurm.rundir.checkpoints import list_checkpoints
from liver_slurm.rundir.events import BegunAnew, CheckpointRefused
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import (
    checkpoint_folders,
    read_run_info,
    record_run,
    record_successor,
    trusted_paths,
)
from liver_slurm.rundir.trust import check_trusted, deny_writing_to_others
from liver_slurm.scheduler.ports import JobStart

log = logging.getLogger("liver_slurm.coordinator")

FATE_TIMEOUT = 3.0
"""Seconds that Slurm may take to say why it ends our job; its own patience is short."""


def main(arguments: list[str] | None = None) -> int:
    """Run the coordinator; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    decided = DECIDED if options.decided_codes else 0
    try:
        return _coordinate(options) + decided
    except Fenced as error:
        log.error("%s", error)
        return error.exit_code + decided
    except LiverError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:  # the process's edge: whoever started us must not take this for a failed run
        log.exception("the coordinator broke down")
        return ExitCode.BROKE_DOWN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m liver_slurm.coordinator", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--source", choices=("slurm", "local", "none"), default="slurm", help="who starts standbys")
    parser.add_argument("--resize", action="append", default=[], metavar="STEP:LAYOUT", help="resize exactly there")
    parser.add_argument("--decided-codes", action="store_true", help="add 10 to the exit code of a run that is over")
    parser.add_argument("--succeeds", metavar="JOB", default="", help="wait until this job has handed over, or is over")
    return parser


def _coordinate(options: argparse.Namespace) -> int:
    run_dir = RunDir(options.run_dir.absolute())
    deny_writing_to_others()
    allow_many_files()
    check_trusted(trusted_paths(run_dir))
    config = read_job(run_dir.job_file)
    engine.named(config.standby.policy)
    clock = SystemClock()
    host = "127.0.0.1" if options.source == "local" else reachable_host(config.stream.interface)
    start = restart.job_start()
    lease = acquire(run_dir, start, _has_ended, clock, wait=bool(options.succeeds) and start.restarts == 0)
    if lease is None:
        return ExitCode.HANDED_OVER
    refused: restart.Refused = {}
    bind = host if options.source == "local" or config.stream.interface else "0.0.0.0"
    store = RendezvousServer(run_dir, bind)
    first_actions = _restart(run_dir, lease, start, refused)
    outcome = last_outcome(lease.records)
    if outcome is not None:
        log.info("the run is over: %s", outcome.reason)
        return outcome.code
    if options.source != "local" and start.job_id:
        _record_job(run_dir, start.job_id)
    origin = _origin(run_dir, lease.records, refused)
    first_actions += [Emit(CheckpointRefused(path=str(path), error=why)) for path, why in refused.items()]
    _check_protocol(lease.records)
    settings = _settings(options, config, run_dir, start, lease.records, (host, store.port), origin)
    state = recover(lease.records, settings, clock.now())
    if settings.epoch == 1:  # later coordinators find these in the journal
        state, requested = client_requests.schedule(state, [_resize(text) for text in options.resize])
        first_actions += requested
    budget = QueryBudget(config.standby.queries_per_minute, clock.now)
    calls = SchedulerCalls(
        _scheduler(options.source, settings, run_dir, lease.records, budget, clock), clock, config.standby.poll, budget
    )
    server = ControlServer(run_dir, settings.epoch, host, bind)
    outside = Outside(config, run_dir, read_run_info(run_dir))
    checkpoints = CheckpointCalls(run_dir, clock)
    loop = Loop(state, server, store, lease, outside.events, calls, checkpoints, clock)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: calls.signalled(signal.Signals(number).name))
    lease.journal.append(_epoch(settings))
    lease.fence.hold(settings.epoch)
    for action in first_actions:
        loop.perform(action)
    loop.announce(host, float(os.environ.get("SLURM_JOB_START_TIME", "0")))
    server.publish()
    outside.serve(loop.status, host)
    try:
        finish = _serve(loop, server, calls, run_dir, lease)
    finally:
        store.close()
        checkpoints.close()
        outside.close()
    if finish.successor:
        record_successor(run_dir, finish.successor)
    return finish.code


def _check_protocol(records: Sequence[Record]) -> None:
    """Raise a LiverError if this version would turn the run's workers away; they train on without it."""
    strange = why_strange(records, PROTOCOL)
    if strange is not None:
        raise LiverError(strange)


def _epoch(settings: Settings) -> EpochStarted:
    """Return the record of this coordinator's start."""
    return EpochStarted(epoch=settings.epoch, job_id=settings.job_id, restarts=settings.restarts, protocol=PROTOCOL)


def _restart(run_dir: RunDir, lease: Lease, start: JobStart, refused: restart.Refused) -> list[Action]:
    """Note in journal and records that the run goes on from its newest checkpoint, if its worlds are lost."""
    reason = why_restart(lease.records, start)
    if reason is None:
        return []
    record = restart.begin_restart(run_dir, lease.journal, reason, refused)
    lease.records.append(record)
    return [Emit(BegunAnew(**msgspec.structs.asdict(record)))]


def _origin(run_dir: RunDir, records: Sequence[Record], refused: restart.Refused) -> tuple[str, int]:
    """Return the checkpoint that the first world starts from, and its step.

    Once there has been a world, or the run has restarted, the run that it was resumed from is not looked at any more,
    and may be gone.
    """
    if any(isinstance(record, Committed | BegunAnewRecord) for record in records):
        return "", 0
    return restart.first_checkpoint(run_dir, refused)


def _record_job(run_dir: RunDir, job_id: str) -> None:
    """Note in the run directory which guaranteed job this is; the script may have been given to sbatch by hand."""
    if read_run_info(run_dir).job_id:
        record_successor(run_dir, job_id)
    else:
        record_run(run_dir, job_id)


def _settings(
    options: argparse.Namespace,
    config: JobConfig,
    run_dir: RunDir,
    start: JobStart,
    records: Sequence[Record],
    store: tuple[str, int],
    origin: tuple[str, int],
) -> Settings:
    run = read_run_info(run_dir)
    return Settings(
        config=config,
        run_id=run.run_id,
        run_dir=str(run_dir.path),
        epoch=next_epoch(records),
        live_workers=live_workers(config.live),
        store_host=store[0],
        store_port=store[1],
        checkpoint=origin[0],
        start_step=origin[1],
        automatic=not options.resize and config.standby.max_jobs > 0,
        standby_workers=0 if options.source == "none" else most_workers(config.standby),
        job_id=start.job_id,
        restarts=start.restarts,
        has_checkpoint=any(list_checkpoints(folder) for folder in checkpoint_folders(run_dir)),
        # Set by sbatch for a heterogeneous job, and inherited; not by srun for a step of several parts.
        heterogeneous=options.source == "slurm" and "SLURM_JOB_ID_HET_GROUP_1" in os.environ,
    )


def _serve(loop: Loop, server: ControlServer, calls: SchedulerCalls, run_dir: RunDir, lease: Lease) -> Finish:
    try:
        finish = loop.run()
    finally:
        server.close()
        calls.stop_waiting()
    log.info("exit code %d: %s", finish.code, finish.reason)
    run_dir.address_file.unlink()  # clients need not wait for an answer that cannot come
    if not finish.over:
        lease.journal.close()  # the next coordinator need not wait for calls to Slurm that hang here
    calls.close(run_over=finish.over)
    return finish


def _scheduler(
    source: str, settings: Settings, run_dir: RunDir, records: Sequence[Record], budget: QueryBudget, clock: Clock
) -> Scheduler:
    """Compose the adapters of the scheduler that starts standbys."""
    standby = settings.config.standby
    if source == "local":
        from liver_slurm.scheduler.local.standby import LocalStandbys

        return Scheduler(standbys=LocalStandbys(run_dir, standby.max_jobs) if standby.max_jobs > 0 else None)
    return _slurm(settings, run_dir, records, budget, clock) if source == "slurm" else Scheduler()


def _slurm(
    settings: Settings, run_dir: RunDir, records: Sequence[Record], budget: QueryBudget, clock: Clock
) -> Scheduler:
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.guaranteed_job import SlurmGuaranteedJob
    from liver_slurm.scheduler.slurm.job_fate import job_fate
    from liver_slurm.scheduler.slurm.node_release import GuaranteedNodes
    from liver_slurm.scheduler.slurm.standby import SlurmStandbys
    from liver_slurm.worker.bootstrap import standby_main

    config, job_id, restarts = settings.config, settings.job_id, settings.restarts
    # A client for each port, as each has a thread; and none that waits for slurmctld: a worker's notice may not.
    standbys = None
    if config.standby.max_jobs > 0:
        units = [(record.unit, record.job_ids) for record in records if isinstance(record, StandbyLaunched)]
        launched = {job_id: unit for unit, job_ids in units for job_id in job_ids}
        client = connect(budget=budget, may_wait=False)
        standbys = SlurmStandbys(config, run_dir, client, standby_main, clock.now, launched)
    if not job_id:
        return Scheduler(standbys=standbys)
    earlier = {record.job_id for record in records if isinstance(record, EpochStarted)}
    hurried = connect(timeout=FATE_TIMEOUT, may_wait=False)
    return Scheduler(
        standbys=standbys,
        guaranteed_job=SlurmGuaranteedJob(config, run_dir, connect(budget=budget, may_wait=False), job_id, earlier),
        nodes=GuaranteedNodes(connect(may_wait=False), job_id) if settings.heterogeneous else None,
        fate=lambda: job_fate(hurried, job_id, restarts),
    )


def _has_ended(job_id: str) -> bool:
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.guaranteed_job import has_ended

    return has_ended(connect(), job_id)


def _resize(text: str) -> ResizeRequest:
    at, colon, layout = text.partition(":")
    if not colon or not at.isdecimal():
        raise BadInput(f"--resize {text!r}: write STEP:LAYOUT, such as 10:tp2pp1dp1")
    return ResizeRequest(layout=layout, at_step=int(at))


if __name__ == "__main__":
    sys.exit(main())
