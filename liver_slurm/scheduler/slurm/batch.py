"""Rendering of the guaranteed job's batch script from ``sbatch/live.sh.j2``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from liver_slurm.base.errors import DECIDED, BadInput, ExitCode
from liver_slurm.config import sbatch
from liver_slurm.config.schema import ComponentSection, JobConfig, StandbySection
from liver_slurm.rundir.paths import RunDir

COORDINATOR_CPUS = 1
COORDINATOR_MEMORY = "2G"
"""Where Slurm tracks memory, a job that asks for none may be given the whole node's. Only asked for if all workers ask
for some: Slurm would carry it over to components that do not."""
# Options of every step of workers: all of the job's memory; and one that leaves, or whose node dies, must not take the
# others with it. Under a PMI, srun of Slurm 26.05 would send SIGTERM to the others first, which looks like a notice.
WORKER_STEP = ("--mem=0", "--export=ALL", "--mpi=none", "--no-kill", "--kill-on-bad-exit=0", "--wait=0")

LAST_WORDS = (ExitCode.DONE, ExitCode.FAILED, ExitCode.CANCELLED, ExitCode.HANDED_OVER)
"""Exit codes, without :data:`DECIDED`, after which a coordinator is not started again."""
_STEP_OPTIONS = (
    "MEM_PER_NODE MEM_PER_CPU MEM_PER_GPU CPUS_PER_TASK CPUS_PER_GPU TRES_PER_TASK NTASKS NPROCS NTASKS_PER_NODE "
    "NTASKS_PER_CORE NTASKS_PER_SOCKET NTASKS_PER_GPU NTASKS_PER_TRES NNODES GRES GRES_FLAGS STEP_GRES STEP_TRES "
    "TIMELIMIT THREADS_PER_CORE CORE_SPEC HINT DISTRIBUTION EXCLUSIVE OVERCOMMIT OVERLAP WHOLE RELATIVE SPREAD_JOB "
    "USE_MIN_NODES REQ_SWITCH WAIT4SWITCH IMMEDIATE WAIT KILL_BAD_EXIT NO_KILL SIGNAL MPI_TYPE RESV_PORTS NETWORK "
    "PARTITION ACCOUNT QOS RESERVATION CONSTRAINT CLUSTER_CONSTRAINT WCKEY CLUSTERS DEPENDENCY DELAY_BOOT "
    "STDOUTMODE STDERRMODE STDINMODE UNBUFFEREDIO LABELIO OPEN_MODE WORKING_DIR REMOTE_CWD CONTAINER CONTAINER_ID "
    "PROLOG EPILOG TASK_PROLOG TASK_EPILOG ACCTG_FREQ PROFILE POWER BCAST BCAST_EXCLUDE COMPRESS EXPORT_ENV "
    "MULTI_PROG THREADS DEBUG TRES_BIND TRES_FREQ"
)
STEP_VARIABLES = tuple("SLURM_" + name for name in _STEP_OPTIONS.split())
"""What srun reads for a step, beside what begins with SLURM_CPU_BIND, SLURM_MEM_BIND and SLURM_GPU. Some of it Slurm
sets for the batch script; the rest can only have come with the submission."""

Options = list[tuple[str, str | None]]


@dataclass(frozen=True)
class _Component:
    """One component's header."""

    title: str
    options: Options


@dataclass(frozen=True)
class _Step:
    """One component's part of an srun command."""

    options: str
    threads: int
    """Default of OMP_NUM_THREADS."""


def render_script(config: JobConfig, run_dir: RunDir, python: str | None = None, *, expedite: bool = False) -> str:
    """Return the guaranteed job's script.

    ``python``: interpreter on the nodes; default: ``live.python``, else the one that runs this. ``expedite``: a job
    that loses a node is to come first when it is started again, which Slurm 25.11 has where the site allows it.

    Raises:
        BadInput: a value has a line break in it, which would be another header line; a line for each.
    """
    components = _components(config, run_dir, expedite)
    if problems := _line_breaks(components):
        raise BadInput("\n".join(problems))
    template = _environment().from_string(read_template("live.sh.j2"))
    return template.render(
        components=components,
        run_dir=shlex.quote(str(run_dir.path)),
        python=shlex.quote(python or config.live.python or sys.executable),
        setup=config.live.setup,
        codes=ExitCode,
        decided=[DECIDED + code for code in LAST_WORDS],
        offset=DECIDED,
        step_variables=STEP_VARIABLES,
        # --overlap: the step of a coordinator that was killed may hold its CPU for a moment longer.
        coordinator=_Step(
            "--het-group=0 --mem=0 --export=ALL --mpi=none --overlap --nodes=1 --ntasks=1 "
            f"--cpus-per-task={COORDINATOR_CPUS}",
            COORDINATOR_CPUS,
        ),
        workers=[
            _Step(
                " ".join([f"--het-group={number}", *_step_resources(component), *WORKER_STEP]), component.cpus_per_task
            )
            for number, component in enumerate(config.live.component, start=1)
        ],
    )


def header_problems(config: JobConfig) -> list[str]:
    """Return what a heterogeneous job's header cannot say, a line for each with its key.

    Slurm carries some options over from one component to the next (sbatch 22.05: mem, exclude and time; not partition,
    gres or constraint), and there is no way to say "the default amount of memory".
    """
    problems = []
    given = None
    for number, component in enumerate(config.live.component):
        if component.mem is not None:
            given = number
        elif given is not None:
            problems.append(
                f"live.component[{number}].mem: not given, but live.component[{given}].mem is, "
                "and Slurm would carry it over; give both or neither"
            )
    return problems + _line_breaks(_components(config, RunDir(Path(config.job.run_root))))


def read_template(name: str) -> str:
    """Return a template of ``sbatch/``, which is ``liver_slurm/sbatch`` in an installed package."""
    return (resources.files("liver_slurm") / "sbatch" / name).read_text()


def gpu_request(wanted: ComponentSection | StandbySection) -> str | None:
    """Return ``gpu:N`` or ``gpu:TYPE:N`` for all tasks of a node; None without GPUs.

    Each task sees its neighbours' GPUs, as NCCL wants it.
    """
    gpus = wanted.gpus_per_task * wanted.tasks_per_node
    kind = f"{wanted.gpu_type}:" if wanted.gpu_type else ""
    return f"gpu:{kind}{gpus}" if gpus else None


def _environment() -> jinja2.Environment:
    # Shell, not HTML: nothing to escape, and an undefined name must never become an empty string.
    return jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _components(config: JobConfig, run_dir: RunDir, expedite: bool = False) -> list[_Component]:
    workers = [_workers(config, component, run_dir, expedite) for component in config.live.component]
    return [_coordinator(config, run_dir, expedite), *workers]


def _coordinator(config: JobConfig, run_dir: RunDir, expedite: bool) -> _Component:
    options: Options = [
        ("job-name", config.job.name),
        ("output", f"{run_dir.logs}/slurm-%j.out"),
        ("open-mode", "append"),
        ("partition", config.live.coordinator_partition or config.live.partition),
        *_common(config, run_dir),
        ("nodes", "1"),
        ("ntasks", "1"),
        ("cpus-per-task", str(COORDINATOR_CPUS)),
        ("mem", COORDINATOR_MEMORY if all(component.mem for component in config.live.component) else None),
    ]
    return _Component("Component 0: the coordinator.", _quoted(options) + _flags(config, expedite))


def _workers(config: JobConfig, component: ComponentSection, run_dir: RunDir, expedite: bool) -> _Component:
    # Not ntasks-per-node: with it Slurm from 24.11 on takes no nodes back from a running job. A node's share of CPUs as
    # the least keeps the tasks even (measured: 22.05, 24.11, 26.05).
    workers = component.nodes * component.tasks_per_node
    options: Options = [
        ("partition", component.partition or config.live.partition),
        *_common(config, run_dir),
        ("nodes", str(component.nodes)),
        ("ntasks", str(workers)),
        ("cpus-per-task", str(component.cpus_per_task)),
        ("mincpus", str(component.tasks_per_node * component.cpus_per_task)),
        ("gres", gpu_request(component)),
        ("mem", component.mem),
        ("constraint", component.constraint),
        # Said even if it is empty, because it would be carried over otherwise.
        ("exclude", component.exclude or ("" if any(other.exclude for other in config.live.component) else None)),
    ]
    return _Component(
        f"Workers: {workers}, {component.tasks_per_node} on each node.", _quoted(options) + _flags(config, expedite)
    )


def _common(config: JobConfig, run_dir: RunDir) -> Options:
    return [
        ("time", config.live.time),
        ("account", config.live.account),
        ("qos", config.live.qos),
        # How a job is found back to its run.
        ("comment", str(run_dir.path)),
        ("export", "ALL"),
    ]


def _flags(config: JobConfig, expedite: bool) -> Options:
    # A lost node is the workers' affair, not the end of the job. Whether Slurm may start the job again is said in any
    # case: its default is the cluster's JobRequeue.
    requeue = ("requeue", "expedite" if expedite else None) if config.live.requeue else ("no-requeue", None)
    further: Options = [
        (name, shlex.quote(value) if value is not None else None) for name, value in sbatch.options(config.live.sbatch)
    ]
    return [("no-kill", None), requeue, *further]


def _quoted(options: Options) -> Options:
    """Only what was asked for, with the values as sbatch reads them."""
    return [(name, shlex.quote(value) if value else "") for name, value in options if value is not None]


def _step_resources(component: ComponentSection) -> list[str]:
    # Named again although the job has them: srun takes neither CPUs nor GPUs of a component from the job.
    gres = gpu_request(component)
    return [
        f"--nodes={component.nodes}",
        f"--ntasks-per-node={component.tasks_per_node}",
        f"--cpus-per-task={component.cpus_per_task}",
        *([f"--gres={gres}"] if gres else []),
    ]


def _line_breaks(components: list[_Component]) -> list[str]:
    return [
        f"--{name} {value!r}: a line break cannot be in a batch script's header"
        for component in components
        for name, value in component.options
        if value is not None and "\n" in value
    ]
