"""Gather the facts from Slurm, from this machine, and from one node of each partition through a short job."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec

from liver_slurm.base import interrupts
from liver_slurm.base.errors import ClusterError
from liver_slurm.base.network import reachable_host
from liver_slurm.config.schema import JobConfig, LiveSection, StandbySection
from liver_slurm.doctor import probe
from liver_slurm.doctor.facts import Facts, Look, Report, SlurmFacts, wanted_partitions
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.command import NotInstalled
from liver_slurm.scheduler.slurm.connect import connect
from liver_slurm.scheduler.slurm.munge import munge_problem
from liver_slurm.scheduler.slurm.node_shell import NodeDialogue, Place, job_name
from liver_slurm.scheduler.slurm.submit import check_submittable

START = 30.0
"""Seconds that a probe may take to start once it has a node."""
REPORT = 2 * probe.TOOL_TIMEOUT + 30.0
"""Seconds that a probe may take to look."""


def gather(config: JobConfig, wait: float | None) -> Facts:
    """Gather all facts for a job.

    Args:
        wait: seconds to wait for a free node of each partition; None: submit no jobs.
    """
    with _token_file(config.job.run_root) as (token_file, token):
        slurm, slurm_error, missing = _ask_slurm(config)
        looks: Sequence[Look] = ()
        not_looked = ""
        with ThreadPoolExecutor(1) as pool:
            here = pool.submit(probe.look_here, config.job.run_root, token_file, True)
            if slurm is None:
                not_looked = "Slurm does not answer"
            elif wait is None:
                not_looked = "--no-jobs was given"
            else:
                looks = look_around(config, places(config.live, config.standby, slurm), token_file, wait)
            return Facts(
                config=config,
                here=here.result(),
                requirements=_requirements(config.stream.transport),
                slurm=slurm,
                slurm_error=slurm_error,
                slurm_missing=missing,
                pyslurm=_pyslurm(),
                munge_error=munge_problem(slurm.config if slurm else {}),
                token=token,
                looks=looks,
                not_looked=not_looked,
            )


def _ask_slurm(config: JobConfig) -> tuple[SlurmFacts | None, str, bool]:
    """Ask Slurm; without an answer return None, the reason, and whether this machine has no Slurm at all."""
    try:
        client = connect()
        partitions = client.partitions()
        names = [
            one.name for one in partitions if one.name in wanted_partitions(config.live, config.standby, partitions)
        ]
        return (
            SlurmFacts(
                version=client.version(),
                client="Slurm's commands" if isinstance(client, CommandClient) else "pyslurm",
                config=client.config(),
                partitions=partitions,
                nodes={name: client.nodes(name) for name in names},
                problems=check_submittable(config, client),
            ),
            "",
            False,
        )
    except ClusterError as error:
        return None, str(error), isinstance(error, NotInstalled)


def places(live: LiveSection, standby: StandbySection, slurm: SlurmFacts) -> list[Place]:
    """Choose where to look: one node of each partition that the job uses and that is up, as the job asks for it."""
    up = {one.name for one in slurm.partitions if one.is_up}
    found = []
    for name, gpus in wanted_partitions(live, standby, slurm.partitions).items():
        reclaimable = name in standby.partitions
        component = next((one for one in live.component if (one.partition or live.partition) == name), None)
        asks = standby if reclaimable else component
        if name in up:
            found.append(
                Place(
                    partition=name,
                    gpus=gpus,
                    account=(standby.account if reclaimable else None) or live.account,
                    qos=standby.qos if reclaimable else live.qos,
                    constraint=asks.constraint if asks else None,
                    exclude=asks.exclude if asks else None,
                )
            )
    return found


def look_around(config: JobConfig, where: Sequence[Place], token_file: str | None, wait: float) -> list[Look]:
    """Look at one node of each place, all at the same time; every job has ended when this returns."""
    name = job_name()
    dialogues: list[NodeDialogue] = []
    with interrupts.orderly():
        try:
            with probe.listen() as server, ThreadPoolExecutor(max(1, len(where))) as pool:
                try:
                    for place in where:  # one by one, so that those that have started are ended if another cannot be
                        script = probe_script(config, token_file, place.gpus > 0)
                        dialogues += [NodeDialogue(place, script, name, wait)]
                    looks = _hold(dialogues, pool, [reachable_host(None), server.getsockname()[1]], wait)
                finally:  # before the pool's own end, which waits for threads that wait for these
                    _close(dialogues, 0.0 if interrupts.interrupted() else probe.CONNECT_TIMEOUT)
        except KeyboardInterrupt:
            # Also what no dialogue knows of yet, and what the look at this machine waits for.
            interrupts.end_descendants()
            raise
        finally:
            _end_jobs(name)
    return [look or _unseen(dialogue, wait) for look, dialogue in zip(looks, dialogues, strict=True)]


def _hold(
    dialogues: Sequence[NodeDialogue], pool: ThreadPoolExecutor, here: list[object], wait: float
) -> list[Look | None]:
    """Hold all dialogues at once: first each node says where it listens, then each tries to reach all others."""
    deadline = time.monotonic() + wait + START
    hellos = list(pool.map(lambda one: _json_line(one, deadline - time.monotonic()), dialogues))
    peers = {str(hello["name"]): [hello["host"], hello["port"]] for hello in hellos if hello}

    def talk(dialogue: NodeDialogue, hello: dict[str, object] | None) -> Look | None:
        if hello is None:
            return None
        others = {host: place for host, place in peers.items() if host != hello["name"]}
        return _talk(dialogue, hello, {**others, "this machine": here})

    return list(pool.map(talk, dialogues, hellos))


def _close(dialogues: Sequence[NodeDialogue], patience: float) -> None:
    for dialogue in dialogues:
        dialogue.hang_up()
    for dialogue in dialogues:
        dialogue.wait(patience)
        dialogue.close()


def probe_script(config: JobConfig, token_file: str | None, torch: bool) -> str:
    """Write what bash runs on a node, with the job's own setup lines and Python, as for its workers."""
    arguments = ["--run-root", config.job.run_root]
    if token_file is not None:
        arguments += ["--token-file", token_file]
    if config.stream.interface is not None:
        arguments += ["--interface", config.stream.interface]
    if torch:
        arguments.append("--torch")
    command = [config.live.python or sys.executable, "-m", "liver_slurm.doctor.probe", *arguments]
    # container.sh takes RUN_DIR into its container. What the setup lines print is not part of the dialogue.
    place = f"export RUN_DIR={shlex.quote(str(probe.nearest_folder(config.job.run_root)))}"
    return "\n".join(["exec 3>&1 1>&2", place, *config.live.setup, f"exec {shlex.join(command)} 1>&3 3>&-"])


def _talk(dialogue: NodeDialogue, hello: dict[str, object], peers: dict[str, list[object]]) -> Look | None:
    unreached = probe.connect_all({"": [str(hello["host"]), int(str(hello["port"]))]})[""]
    asked = time.time()
    dialogue.write(json.dumps({"peers": peers}))
    answer = _json_line(dialogue, START)
    answered = time.time()
    document = _json_line(dialogue, REPORT)
    if answer is None or document is None:
        return None
    return Look(
        partition=dialogue.place.partition,
        gpus_asked=dialogue.place.gpus,
        host=str(hello["name"]),
        report=msgspec.convert(document, Report),
        clock_ahead=float(str(answer["time"])) - (asked + answered) / 2,
        clock_uncertainty=(answered - asked) / 2,
        unreached_from_here=unreached,
    )


def _unseen(dialogue: NodeDialogue, wait: float) -> Look:
    reason, busy = dialogue.why()
    if busy:
        reason = f"no free node within {wait:g} s"
    return Look(dialogue.place.partition, dialogue.place.gpus, reason=reason, busy=busy)


def _json_line(dialogue: NodeDialogue, timeout: float) -> dict[str, object] | None:
    """Read the next line that is a JSON document; other lines come from the site's start-up files."""
    deadline = time.monotonic() + timeout
    while (line := dialogue.read(deadline - time.monotonic())) is not None:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            return document
    return None


def _end_jobs(name: str) -> None:
    """Cancel jobs that are left, where srun was killed or slurmctld did not hear it: else srun ends its job itself."""
    client = connect()
    left = [job.job_id for job in client.jobs(names=(name,)) if not job.ends]
    client.cancel(left)


@contextmanager
def _token_file(run_root: str) -> Iterator[tuple[str | None, str | None]]:
    """Write a file that nodes should see into the folder of runs; give its path and content, None if it cannot be."""
    folder = probe.nearest_folder(run_root)
    if not os.access(folder, os.W_OK | os.X_OK):
        yield None, None
        return
    token = secrets.token_hex(16)
    file = folder / f"{probe.TOKEN_FILE}-{token[:8]}"
    with interrupts.temporary(file):
        try:
            file.write_text(token)
        except OSError:  # a full or a read-only file system: the report of the folder says so
            yield None, None
            return
        with file.open("r+b") as stream:
            with contextlib.suppress(OSError):  # a file system without locks: what the probes meet says so
                probe.hold_lock(stream.fileno())
            yield str(file), token


def _requirements(transport: str) -> dict[str, str]:
    """Map the packages that probes look for to our version specifiers; of extras only the transport's."""
    found = {}
    for text in importlib.metadata.requires("liver-slurm") or ():
        needed, _, condition = text.partition(";")
        if condition and f'extra == "{transport}"' not in condition:
            continue
        match = re.match(r"([\w.-]+)\s*([^\[]*)$", needed)
        if match and match[1] in probe.PACKAGES:
            found[match[1]] = match[2].strip(" ()")
    return found


def _pyslurm() -> str | None:
    try:
        return importlib.metadata.version("pyslurm")
    except importlib.metadata.PackageNotFoundError:
        return None
