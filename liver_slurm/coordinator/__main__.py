"""``python -m liver_slurm.coordinator RUN_DIR``: the coordinator of one run.

Exit codes: 0 the run finished, 1 it failed for good, 2 bad input, 3 it was cancelled, 4 another job goes on with it, 70
the coordinator itself broke down; after the last one, and after a signal, it may be started again and goes on from its
journal.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from liver_slurm.base.errors import BadInput, ClusterError, LiverError
from liver_slurm.base.network import reachable_host
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.config.layouts import live_workers
from liver_slurm.config.load import read_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import most_workers
from liver_slurm.coordinator.core import client_requests, recovery
from liver_slurm.coordinator.core.io import Action, Emit, Finish
from liver_slurm.coordinator.core.lifecycle import HANDED_OVER
from liver_slurm.coordinator.core.records import EpochStarted, Record
from liver_slurm.coordinator.core.state import Settings
from liver_slurm.coordinator.runtime import ownership, restart
from liver_slurm.coordinator.runtime.background_calls import SupplyWatch
from liver_slurm.coordinator.runtime.claim import Claim
from liver_slurm.coordinator.runtime.journal import Journal, JournalBusy
from liver_slurm.coordinator.runtime.live_job_watch import LiveJobWatch
from liver_slurm.coordinator.runtime.loop import Clock, Loop
from liver_slurm.coordinator.runtime.node_return import NodeReturn
from liver_slurm.coordinator.runtime.rendezvous_store import host_store
from liver_slurm.coordinator.runtime.stopping import Stopping
from liver_slurm.policy import engine
from liver_slurm.protocol.messages import ResizeRequest
from liver_slurm.protocol.server import ControlServer
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import BegunAnew
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info, record_run, record_successor
from liver_slurm.scheduler.ports import Fate, JobStart

log = logging.getLogger("liver_slurm.coordinator")

BROKE_DOWN = 70
ASKING = 3.0
"""Seconds that Slurm may take to say why it ends our job; its own patience is short."""


def main(arguments: list[str] | None = None) -> int:
    """Run the coordinator; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        return _coordinate(options)
    except LiverError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:  # the process's edge: whoever started us must not take this for a failed run
        log.exception("the coordinator broke down")
        return BROKE_DOWN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m liver_slurm.coordinator", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--source", choices=("slurm", "local", "none"), default="slurm", help="who starts standbys")
    parser.add_argument("--resize", action="append", default=[], metavar="STEP:LAYOUT", help="resize exactly there")
    parser.add_argument("--succeeds", metavar="JOB", default="", help="wait until this job has handed over, or is over")
    return parser


def _coordinate(options: argparse.Namespace) -> int:
    run_dir = RunDir(options.run_dir.absolute())
    config = read_job(run_dir.job_file)
    engine.named(config.standby.policy)
    host = "127.0.0.1" if options.source == "local" else reachable_host(config.stream.interface)
    _store, store_port = host_store(host)  # serves as long as this function runs; slow, so before a turn is waited for
    start = restart.job_start()
    taken = _take_run(run_dir, start, options.succeeds)
    if taken is None:
        return HANDED_OVER
    journal, records, claim = taken
    first_actions = _begin_anew(run_dir, journal, records, start)
    outcome = recovery.ended(records)
    if outcome is not None:
        log.info("the run is over: %s", outcome.reason)
        return outcome.code
    if options.source != "local" and start.job_id:
        _record_job(run_dir, start.job_id)
    settings = _settings(options, config, run_dir, start, records, host, store_port)
    clock = Clock()
    state = recovery.recover(records, settings, clock.now())
    if settings.epoch == 1:  # later coordinators find these in the journal
        state, requested = client_requests.schedule(state, [_resize(text) for text in options.resize])
        first_actions += requested
    budget = QueryBudget(config.standby.queries_per_minute)
    watch = _watch(options.source, config, run_dir, budget)
    server = ControlServer(run_dir, settings.epoch, host, bind="127.0.0.1" if options.source == "local" else "0.0.0.0")
    live_job = _live_job(options.source, config, run_dir, start.job_id, records, budget)
    stopping = Stopping(_fate(options.source, start))
    node_return = _node_return(settings)
    loop = Loop(state, server, journal, EventLog(run_dir.events), watch, live_job, stopping, claim, clock, node_return)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopping.signalled(signal.Signals(number).name))
    journal.append(EpochStarted(epoch=settings.epoch, job_id=start.job_id, restarts=start.restarts))
    for action in first_actions:
        loop.perform(action)
    loop.announce(host)
    server.publish()
    finish = _serve(loop, server, watch, live_job, node_return, run_dir)
    if finish.successor:
        record_successor(run_dir, finish.successor)
    return finish.code


def _take_run(run_dir: RunDir, start: JobStart, succeeds: str) -> tuple[Journal, list[Record], Claim] | None:
    """The journal, once this coordinator may act; None: another job goes on with the run."""
    claim = Claim(run_dir.claim_file, start)
    wait = bool(succeeds) and start.restarts == 0
    if not wait:
        claim.make()
    try:
        journal, records = ownership.open_journal(run_dir.journal, start.job_id, _has_ended, wait=wait)
    except JournalBusy:
        # We may have died between handing over and the end of our process; the successor has said who it is.
        if start.job_id and read_run_info(run_dir).job_id not in ("", start.job_id):
            return None
        raise
    if journal is None:
        return None
    if wait:
        claim.make()
    return journal, records, claim


def _begin_anew(run_dir: RunDir, journal: Journal, records: list[Record], start: JobStart) -> list[Action]:
    """Note in journal and ``records`` that the run goes on from its newest checkpoint, if its worlds are lost."""
    reason = recovery.why_anew(records, start)
    if reason is None:
        return []
    record = restart.begin_anew(run_dir, journal, reason)
    records.append(record)
    return [Emit(BegunAnew(**msgspec.structs.asdict(record)))]


def _record_job(run_dir: RunDir, job_id: str) -> None:
    """Note in the run directory which live job this is; the script may have been given to sbatch by hand."""
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
    host: str,
    store_port: int,
) -> Settings:
    run = read_run_info(run_dir)
    checkpoint, start_step = restart.first_checkpoint(run.resumed_from)
    return Settings(
        config=config,
        run_id=run.run_id,
        run_dir=str(run_dir.path),
        epoch=recovery.next_epoch(records),
        live_workers=live_workers(config.live),
        store_host=host,
        store_port=store_port,
        checkpoint=checkpoint,
        start_step=start_step,
        automatic=not options.resize and config.standby.max_jobs > 0,
        standby_workers=0 if options.source == "none" else most_workers(config.standby),
        job_id=start.job_id,
        restarts=start.restarts,
        # Set by sbatch for a heterogeneous job, and inherited; not by srun for a step of several parts.
        heterogeneous=options.source == "slurm" and "SLURM_JOB_ID_HET_GROUP_1" in os.environ,
    )


def _serve(
    loop: Loop,
    server: ControlServer,
    watch: SupplyWatch | None,
    live_job: LiveJobWatch | None,
    node_return: NodeReturn | None,
    run_dir: RunDir,
) -> Finish:
    try:
        finish = loop.run()
    finally:
        server.close()
        if node_return is not None:
            node_return.close()
    log.info("exit code %d: %s", finish.code, finish.reason)
    run_dir.address_file.unlink()  # clients need not wait for an answer that cannot come
    if watch is not None:
        try:
            watch.close(end_jobs=finish.over)
        except ClusterError as error:
            log.error("standby jobs may be left: %s", error)
    if live_job is not None:
        try:
            live_job.close(run_over=finish.over)
        except ClusterError as error:
            log.error("a successor job may be left: %s", error)
    return finish


def _watch(source: str, config: JobConfig, run_dir: RunDir, budget: QueryBudget) -> SupplyWatch | None:
    if source == "none" or config.standby.max_jobs == 0:
        return None
    if source == "local":
        from liver_slurm.scheduler.local.standby import LocalStandbys

        return SupplyWatch(LocalStandbys(run_dir, config.standby.max_jobs), config.standby.poll)
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.standby import SlurmStandbys
    from liver_slurm.worker.bootstrap import standby_main

    # A worker's notice may not wait for slurmctld.
    client = connect(budget=budget, may_wait=False)
    return SupplyWatch(SlurmStandbys(config, run_dir, client, standby_main), config.standby.poll, budget)


def _live_job(
    source: str, config: JobConfig, run_dir: RunDir, job_id: str, records: Sequence[Record], budget: QueryBudget
) -> LiveJobWatch | None:
    if source != "slurm" or not job_id:
        return None
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.live_job import SlurmLiveJob

    earlier = {record.job_id for record in records if isinstance(record, EpochStarted)}
    client = connect(budget=budget, may_wait=False)
    return LiveJobWatch(SlurmLiveJob(config, run_dir, client, job_id, earlier))


def _has_ended(job_id: str) -> bool:
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.live_job import has_ended

    return has_ended(connect(), job_id)


def _node_return(settings: Settings) -> NodeReturn | None:
    if not settings.heterogeneous:
        return None
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.node_release import LiveNodes

    return NodeReturn(LiveNodes(connect(may_wait=False), settings.job_id))


def _fate(source: str, start: JobStart) -> Callable[[], tuple[Fate, str]] | None:
    if source != "slurm" or not start.job_id:
        return None
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.job_fate import job_fate

    client = connect(timeout=ASKING, may_wait=False)
    return lambda: job_fate(client, start.job_id, start.restarts)


def _resize(text: str) -> ResizeRequest:
    at, colon, layout = text.partition(":")
    if not colon or not at.isdecimal():
        raise BadInput(f"--resize {text!r}: write STEP:LAYOUT, such as 10:tp2pp1dp1")
    return ResizeRequest(layout=layout, at_step=int(at))


if __name__ == "__main__":
    sys.exit(main())
