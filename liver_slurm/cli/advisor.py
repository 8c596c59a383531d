"""``liver-slurm advisor``: from the logs of runs to advice when to take reclaimable nodes."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import Subparsers, add_json, complete, counted, new_parser, print_json, print_table

if TYPE_CHECKING:
    from liver_slurm.advisor.preparing import Wish

DESCRIPTION = """\
Learn from logged decisions when to take reclaimable nodes. `collect` reads what runs of standby.policy explore have
decided and what came of it, `fit` learns a rule and says whether it is surely better than to take always, `evaluate`
says what rules are worth, `explain` what a model does and what it rests on. standby.policy advisor follows a model."""
EXAMPLES_OF = {
    "collect": {"advisor collect runs/gpt-* -o table.jsonl": "decisions and outcomes of some runs"},
    "fit": {
        "advisor fit table.jsonl -o advisor.json": "learn a rule, and say whether it is advice",
        "advisor fit table.jsonl --target there.jsonl -o there.json": "for a partition of which only offers are known",
        "advisor fit table.jsonl --class tree --window 1800 -o advisor.json": "another kind of rule, another outcome",
    },
    "evaluate": {"advisor evaluate new.jsonl --model advisor.json": "what a model is worth on other decisions"},
    "explain": {
        "advisor explain advisor.json": "the rule in words, and what it rests on",
        "advisor explain advisor.json --html advice.html --png advice.png": "with pictures",
    },
}
FILES = {
    "RUN/events.jsonl": "policy_decided and decision_window, which collect reads",
    "table.jsonl": "decisions, one a line",
    "advisor.json": "a model, which standby.advisor names",
}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``advisor`` and its verbs."""
    examples = {line: remark for each in EXAMPLES_OF.values() for line, remark in each.items()}
    parser = new_parser(subparsers, "advisor", DESCRIPTION, examples, files=FILES, see_also=("simulate", "bench"))
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    collect = _add_verb(verbs, "collect", "read decisions and their outcomes out of runs' event logs", _collect)
    complete(
        collect.add_argument("runs", metavar="RUN", nargs="+", help="job id, name or directory of a run, several"),
        "runs",
    )
    collect.add_argument("--partition", metavar="NAME", help="only offers of this partition (default: of all)")
    _add_output(collect, "table")
    fit = _add_verb(verbs, "fit", "learn a rule, and say whether it is surely better than to take always", _fit)
    _add_tables(fit)
    _add_output(fit, "model")
    fit.add_argument(
        "--class", dest="rule_class", choices=("linear", "hinge", "tree"), default="linear",
        help="kind of rule: a weighted sum, one that may bend, a few questions (default: linear)",
    )  # fmt: skip
    fit.add_argument(
        "--learn-by", choices=("plug-in", "efficient"), default="plug-in",
        help="from what regressions say, which has less noise, or from the efficient estimate (default: plug-in)",
    )  # fmt: skip
    evaluate = _add_verb(verbs, "evaluate", "what models, taking always and leaving always are worth", _evaluate)
    _add_tables(evaluate)
    models = evaluate.add_argument(
        "--model", action="append", default=[], metavar="FILE", help="a model, several times for several"
    )
    complete(models, "files")
    explain = _add_verb(verbs, "explain", "the rule of a model in words, and what it rests on", _explain)
    complete(explain.add_argument("model", metavar="MODEL.json", help="what fit has written"), "files")
    for name, what in (("html", "a page with pictures and words, which needs no network"), ("png", "the pictures")):
        complete(explain.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"write {what}"), "files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb that was named."""
    return int(args.advisor_verb(args))


def _add_verb(verbs: Subparsers[argparse.ArgumentParser], name: str, text: str, verb: Any) -> argparse.ArgumentParser:
    parser = new_parser(verbs, name, f"{text[0].upper()}{text[1:]}.", EXAMPLES_OF[name], files=FILES)
    add_json(parser)
    parser.set_defaults(advisor_verb=verb)
    return parser


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    complete(
        parser.add_argument("-o", "--output", metavar="FILE", required=True, help=f"where the {what} is written"),
        "files",
    )


def _add_tables(parser: argparse.ArgumentParser) -> None:
    complete(
        parser.add_argument("tables", metavar="TABLE", nargs="+", help="what collect has written, several"), "files"
    )
    target = parser.add_argument(
        "--target", action="append", metavar="TABLE", help="offers of another partition, for which the rule is meant"
    )
    complete(target, "files")
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="outcome that counts, seconds (default: that of the models, else the farthest seen often enough)",
    )
    parser.add_argument(
        "--features",
        metavar="NAME,…",
        help="only these features (default: those that a run's own decisions do not make)",
    )


def _collect(args: argparse.Namespace) -> int:
    from liver_slurm.advisor.rows import NOT_FOLLOWED, write_rows
    from liver_slurm.app.collect import collect

    found = collect(args.runs, args.partition)
    write_rows(Path(args.output), found.header, found.rows)
    windows = found.header.windows_s
    followed = [row for row in found.rows if row.reason != NOT_FOLLOWED]
    others = len(found.rows) - len(followed)
    actions: dict[str, list[int]] = {}
    for action in ("take", "leave"):
        mine = [row for row in followed if row.action == action]
        seen = (sum(row.gain_s[stage] is not None for row in mine) for stage in range(len(windows)))
        actions[action] = [len(mine), *seen]
    reasons = Counter(row.reason for row in followed if row.reason)
    if args.json:
        document = {"table": args.output, "runs": found.runs, "windows_s": windows, "not_followed": others}
        counts = {action: {"decisions": each[0], "seen": each[1:]} for action, each in actions.items()}
        print_json({**document, "actions": counts, "not_seen": reasons, "left_out": found.left_out})
        return 0
    print(f"{counted(len(followed), 'decision')} of {counted(found.runs, 'run')} in {args.output}")
    headers = ("", "decisions", *(f"seen at {window:g} s" for window in windows))
    print_table([(action, *each) for action, each in actions.items()], headers)
    for reason, count in reasons.most_common():
        print(f"cut off in {count}: {reason}")
    if others:
        print(f"and {counted(others, 'offer')} without a decision that has a stated chance: for --target only")
    for reason, count in found.left_out.most_common():
        print(f"left out {count}: {reason}")
    return 0


def _fit(args: argparse.Namespace) -> int:
    from liver_slurm.advisor.fitting import fit, need_libraries
    from liver_slurm.advisor.model import write_model
    from liver_slurm.advisor.rows import read_rows
    from liver_slurm.app.advice import explain

    need_libraries()
    rows, target = read_rows(list(map(Path, args.tables))), _target(args)
    model = fit(rows, target, _wish(args), time.time())
    write_model(Path(args.output), model)
    if args.json:
        print_json(model)
        return 0
    print("\n".join(explain(model)))
    print(f'\nwritten to {args.output}; jobs with standby.policy = "advisor" and standby.advisor = "FILE" follow it')
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from liver_slurm.advisor.fitting import evaluate, need_libraries
    from liver_slurm.advisor.model import read_model
    from liver_slurm.advisor.rows import read_rows
    from liver_slurm.advisor.summary import figure

    need_libraries()
    rows, target = read_rows(list(map(Path, args.tables))), _target(args)
    models = {path: read_model(Path(path), rows.header.features_version) for path in args.model}
    wish, windows = _wish(args), {model.window_s for model in models.values()}
    if wish.window_s is None and len(windows) == 1:
        wish = replace(wish, window_s=windows.pop())
    ready, found = evaluate(rows, target, models, wish)
    if args.json:
        keys = [
            {
                "name": one.name,
                "value": figure(one.value),
                "gain": figure(one.gain),
                "taken": one.taken,
                "note": one.note,
            }
            for one in found
        ]
        print_json({"window_s": ready.window_s, "decisions": len(ready.used), "rules": keys, "notes": ready.notes})
        return 0
    print(f"time gained within {ready.window_s:g} s, in seconds a decision; {len(ready.used)} decisions\n")
    print_table(
        [(one.name, f"{one.taken:.0%}", _shown(one.value), _shown(one.gain)) for one in found],
        ("rule", "takes", "worth (95 %)", "against taking always (95 %)"),
    )
    for line in (*(f"{one.name}: {one.note}" for one in found if one.note), *ready.notes):
        print(f"note: {line}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    from liver_slurm.advisor.model import read_model
    from liver_slurm.app.advice import explain
    from liver_slurm.policy.features import VERSION

    model = read_model(Path(args.model), VERSION)
    if args.html is not None or args.png is not None:
        from liver_slurm.report.write import write_advice_html, write_advice_png

        if args.html is not None:
            write_advice_html(model, explain(model), args.html)
        if args.png is not None:
            write_advice_png(model, args.png)
    if args.json:
        print_json(model)
        return 0
    print("\n".join(explain(model)))
    for path in (args.html, args.png):
        if path is not None:
            print(f"written to {path}")
    return 0


def _target(args: argparse.Namespace) -> Any:
    from liver_slurm.advisor.rows import read_rows

    return read_rows(list(map(Path, args.target))) if args.target else None


def _wish(args: argparse.Namespace) -> Wish:
    from liver_slurm.advisor.preparing import Wish

    features = tuple(args.features.split(",")) if args.features else None
    window = args.window
    if window is not None and not window > 0.0:
        raise BadInput(f"--window {window:g}: write seconds above 0, of a window that collect has")
    return Wish(
        rule_class=getattr(args, "rule_class", "linear"),
        learn_by=getattr(args, "learn_by", "plug-in"),
        window_s=window,
        features=features,
    )


def _shown(estimated: Any) -> str:
    low, high = estimated.interval()
    return f"{estimated.value:+.1f} ({low:+.1f} to {high:+.1f})"
