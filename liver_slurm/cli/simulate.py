"""``liver-slurm simulate``: what a run would make of a cluster's capacity, by the real coordinator."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import (
    JOB_FILES,
    Subparsers,
    add_job_file,
    add_json,
    clock_text,
    complete,
    new_parser,
    positive,
    print_json,
    print_table,
    seconds_text,
)

if TYPE_CHECKING:
    from liver_slurm.config.schema import JobConfig
    from liver_slurm.simulation.cases import Case
    from liver_slurm.simulation.costs import Costs
    from liver_slurm.simulation.setting import Setting

DESCRIPTION = """\
What a run would make of a cluster's capacity, without the cluster. A trace says when which nodes are to be had; the
real coordinator, its policies, its choice of layouts and its Slurm adapter run on it in simulated time, for each policy
and mode. Compared with: checkpoint and restart, data parallelism that grows and shrinks, guaranteed nodes only, and
perfect foresight, which bounds them all. What steps, changes and restarts take comes from a run that has measured it or
from a file, and every figure is printed.

Traces: Bamboo's and Parcae's files, counts as csv, or what sacct prints of a site's own history (--load makes one up):
  sacct --allusers --allocations --duplicates --truncate --parsable2 -S 2026-10-01 -E 2026-11-01 \\
    --format=JobID,Partition,State,Start,End,NNodes,NodeList > history.txt"""

_HEADERS = ("policy", "mode", "ETTR", "capacity goodput", "tokens", "of the bound", "changes", "paused", "lost")
_INTERVAL = "± is half of the interval that has the true mean with 95 %"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``simulate``."""
    parser = new_parser(
        subparsers,
        "simulate",
        DESCRIPTION,
        {
            "simulate job.toml --trace history.txt --partition gpu --notice 60": "a site's own history",
            "simulate job.toml --load nodes=128,utilization=0.8 --seeds 5": "a load that is made up, five times",
            "simulate job.toml --trace counts.csv --html simulated.html": "a page to look at",
            "simulate job.toml --trace counts.csv --costs costs.json --policy cost-aware --json": "for programs",
            "simulate job.toml --trace counts.csv --save-costs costs.json": "the costs, to be changed and given again",
        },
        files=JOB_FILES,
        see_also=("goodput", "plan", "bench"),
    )
    add_job_file(parser)
    origin = parser.add_mutually_exclusive_group(required=True)
    complete(origin.add_argument("--trace", metavar="FILE", help="when which nodes are to be had"), "files")
    origin.add_argument(
        "--load",
        metavar="KEY=VALUE,…",
        help="without a trace: draw a production load, and take what it leaves idle; nodes=128,utilization=0.8 and what"
        " docs/simulation.md has",
    )
    _add_trace_options(parser)
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help="as standby.policy, several times for several (default: all)"
    )
    parser.add_argument("--mode", choices=("overlap", "pause"), help="as stream.mode (default: both)")
    parser.add_argument(
        "--notice",
        type=_seconds,
        metavar="S",
        help="seconds from a notice to the end; 0: none is given, each end is a sudden death"
        " (default: standby.grace, else 30)",
    )
    parser.add_argument(
        "--queue-wait",
        metavar="WAIT",
        default="0",
        help="seconds that a standby job waits in the queue although nodes are idle: 30, 10-60, or exp:30 (default: 0)",
    )
    parser.add_argument(
        "--deaths", type=_seconds, metavar="RATE", default=0.0, help="sudden deaths per 1,000 node-days (default: 0)"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of all that is drawn at random (default: 0)")
    parser.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        default=1,
        help="simulate with N seeds from --seed on: means, and intervals that have them with 95 %% (default: 1)",
    )
    _add_cost_options(parser)
    _add_output_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--events", metavar="FOLDER", help="write each run's event log to FOLDER/RUN/, as `advisor collect` reads it"
    )
    page = "write a page of it: worlds over time against what was offered, and the tables"
    complete(parser.add_argument("--html", metavar="FILE", type=Path, help=page), "files")
    add_json(parser)


def _add_cost_options(parser: argparse.ArgumentParser) -> None:
    costs = "what steps, changes and restarts take: a file as of --save-costs, or what bench train, reconfigure or"
    costs += " recovery --json has printed; several times for several, the later counts"
    by_node = "one worker stands for each tensor parallel group: for thousands of workers; all layouts have the same tp"
    parser.add_argument("--by-node", action="store_true", help=by_node)
    complete(parser.add_argument("--costs", action="append", metavar="FILE", default=[], help=costs), "files")
    calibrate = parser.add_argument(
        "--calibrate", metavar="RUN", help="take from this run's files what it has measured"
    )
    complete(calibrate, "runs")
    parser.add_argument("--save-costs", metavar="FILE", help="write the costs that were used, to be changed")


def _add_trace_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hours", type=_more_than_0, metavar="H", help="the trace's first hours only")
    parser.add_argument(
        "--interval",
        type=_more_than_0,
        metavar="S",
        help="seconds between lines, of a trace that has counts and no times",
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of the cluster, for sacct's output")
    parser.add_argument("--partition", metavar="NAME", default="", help="nodes of this partition only, of sacct's")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def _more_than_0(text: str) -> float:
    if (value := _seconds(text)) == 0.0:
        raise argparse.ArgumentTypeError(f"{text} is too little; write more than 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Simulate, and print what each case comes to."""
    from liver_slurm.config.load import load_job
    from liver_slurm.simulation.cases import MODES, POLICIES
    from liver_slurm.simulation.coarse import group_size
    from liver_slurm.simulation.seeds import simulate

    config = load_job(args.job_file, args.overrides, files=False)
    if not config.standby.partitions:  # a site file has them, and the simulated cluster has one, of whatever name
        config = replace(config, standby=replace(config.standby, partitions=("scavenger",)))
    for key in ("rampup_batch_size", "earlier_batches"):
        if getattr(config.train, key):
            raise BadInput(f"train.{key}: a simulation takes all steps to be of one batch; add --set 'train.{key}=[]'")
    if config.train.loop is not None and args.calibrate is None and not args.costs:
        raise BadInput("train.loop: what its steps take is known from a run only; add --calibrate RUN or --costs FILE")
    settings = _settings(args, config)
    costs = _costs(args, config)
    policies, modes = tuple(dict.fromkeys(args.policy or POLICIES)), (args.mode,) if args.mode else MODES
    group = group_size(config) if args.by_node else 1
    log = Path(args.events) if args.events is not None else None
    cases = simulate(config, settings, costs, policies, modes, group, _progress(len(settings)), log)
    if args.json:
        print_json(_document(settings, config, costs, cases))
    else:
        _print(settings, config, costs, cases)
    if args.html is not None:  # last: what was simulated for hours is told also where no page can be written
        _write_page(args.html, settings, config, costs, cases)
    return 0


def _write_page(path: Path, settings: list[Setting], config: JobConfig, costs: Costs, cases: list[Case]) -> None:
    from liver_slurm.report.panels import Panel, page, table, worlds
    from liver_slurm.report.write import write_page

    drawn = [case for case in cases if case.sizes]
    if not drawn:
        raise BadInput(f"--html {path}: no run of the product trained, so there is nothing to draw")
    best, rivals = max(drawn, key=lambda case: case.tokens), [case for case in cases[:-1] if not case.sizes]
    rival = max(rivals, key=lambda case: case.tokens)
    headline = (
        f"{best.policy}, {best.mode}: {best.of_bound:.1%} of the tokens that perfect foresight trains, "
        f"ETTR {best.ettr:.1%}; {rival.policy}: {rival.of_bound:.1%} and {rival.ettr:.1%}"
    )
    about = [f"{name}: {value}" for name, value in _headline(settings, config)]
    about.append("Dashed: workers that were to be had, as far as the job grows; filled: workers of the live world.")
    if len(settings) > 1:
        about.append(f"The figure is of the first of {len(settings)} seeds, the table has means; {_INTERVAL}.")
    panels = [Panel(f"{case.policy}, {case.mode}: ETTR {case.ettr:.1%}", case.sizes) for case in drawn]
    first = settings[0]
    body = worlds(panels, first.offered(config), first.trace.seconds, "workers that train over time, of each run")
    body += table(_HEADERS, map(_row, cases))
    spent = ((name, f"{seconds:.4g} s", meaning, note) for name, seconds, meaning, note in costs.figures())
    body += table(("cost", "is", "of", "from"), spent)
    write_page(page(f"simulation of {config.job.name}", headline, about, body), path)


def _settings(args: argparse.Namespace, config: JobConfig) -> list[Setting]:
    """Make the setting of each seed."""
    from liver_slurm.scheduler.ports import DEFAULT_GRACE
    from liver_slurm.simulation.load import parse_load
    from liver_slurm.simulation.setting import Setting, parse_queue_wait
    from liver_slurm.simulation.sources import Source

    notice = args.notice
    if notice is None:
        notice = config.standby.grace if config.standby.grace is not None else DEFAULT_GRACE
    origin = parse_load(args.load) if args.load is not None else Path(args.trace)
    source = Source(origin, args.interval, args.nodes, args.partition, args.hours, args.deaths)
    wait = parse_queue_wait(args.queue_wait)
    return [Setting(source.trace(seed), notice, wait, seed) for seed in range(args.seed, args.seed + args.seeds)]


def _progress(seeds: int) -> Callable[[int], None]:
    """Say on a terminal how many of several seeds are done."""
    shown = seeds > 1 and sys.stderr.isatty()
    return lambda done: print(f"seed {done} of {seeds} is done", file=sys.stderr) if shown else None


def _costs(args: argparse.Namespace, config: JobConfig) -> Costs:
    from liver_slurm.simulation.bench_costs import from_bench, is_bench
    from liver_slurm.simulation.costs import assumed, read_costs, read_document, to_document

    costs = assumed(config)
    if args.calibrate is not None:
        from liver_slurm.rundir.registry import find_run
        from liver_slurm.simulation.calibration import calibrate

        costs = calibrate(find_run(args.calibrate), costs, time.time())
    for path in map(Path, args.costs):
        document = read_document(path)
        costs = from_bench(document, path.name, config, costs) if is_bench(document) else read_costs(path, costs)
    if args.save_costs is not None:
        import msgspec

        try:
            Path(args.save_costs).write_bytes(msgspec.json.format(msgspec.json.encode(to_document(costs)), indent=2))
        except OSError as error:
            raise BadInput(f"--save-costs {args.save_costs}: cannot be written: {error.strerror}") from error
    return costs


def _document(settings: list[Setting], config: JobConfig, costs: Costs, cases: list[Case]) -> dict[str, Any]:
    from liver_slurm.simulation.costs import to_document

    first = settings[0]
    trace = first.trace
    return {
        "trace": {
            "name": trace.name, "seconds": trace.seconds, "events": trace.events, "most_nodes": trace.most,
            "offered_device_s": first.offered_device_s(config), "note": trace.note,
        },
        "notice_s": first.notice,
        "queue_wait_s": first.queue_wait.mean,
        "seed": first.seed,
        "seeds": len(settings),
        "costs": to_document(costs),
        "cases": [case.to_document() for case in cases],
    }  # fmt: skip


def _print(settings: list[Setting], config: JobConfig, costs: Costs, cases: list[Case]) -> None:
    for name, value in _headline(settings, config):
        print(f"{name + ':':<10}{value}")
    print("\ncosts, in seconds:")
    for name, seconds, meaning, note in costs.figures():
        print(f"  {name:<22}{seconds:>10.4g}  {meaning} ({note})")
    print()
    print_table([_row(case) for case in cases], _HEADERS)
    if len(settings) > 1:
        print(f"means of {len(settings)} seeds; {_INTERVAL}")
    for case in cases:
        if case.end:
            print(f"{case.policy}, {case.mode}: it did not train to the end of the trace: {case.end}")


def _row(case: Case) -> list[str]:
    def shown(name: str, write: Callable[[float], str]) -> str:
        value = write(getattr(case, name))
        if name not in case.intervals:
            return value
        low, high = case.intervals[name]
        return f"{value} ± {write((high - low) / 2)}"

    return [
        case.policy, case.mode, shown("ettr", "{:.4f}".format), shown("capacity_goodput", "{:.4f}".format),
        shown("tokens", "{:.4g}".format), shown("of_bound", "{:.1%}".format), shown("changes", "{:.4g}".format),
        shown("paused_s", seconds_text), shown("lost_s", seconds_text),
    ]  # fmt: skip


def _headline(settings: list[Setting], config: JobConfig) -> Iterator[tuple[str, str]]:
    from liver_slurm.config.layouts import live_workers
    from liver_slurm.simulation.setting import workers_per_node

    first, last = settings[0], settings[-1]
    trace, guaranteed, each = first.trace, live_workers(config.live), workers_per_node(config)
    mean = trace.node_seconds / trace.seconds
    yield "trace", f"{trace.name}: {clock_text(trace.seconds)}, {trace.events} changes of capacity"
    if trace.note:
        yield "note", trace.note
    yield (
        "capacity",
        (f"{guaranteed} guaranteed workers, and nodes of {each}: {mean:.1f} on average, {trace.most} at most"),
    )
    told = f"{first.notice:g} s" if first.notice else "none: each end is a sudden death"
    seeds = f"seed {first.seed}" if first is last else f"seeds {first.seed} to {last.seed}, what is above of the first"
    yield "notice", f"{told}; queue wait {first.queue_wait}; {seeds}"
