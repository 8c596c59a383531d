"""What a model says, for people."""

from __future__ import annotations

from collections.abc import Iterator

from liver_slurm.advisor.horizon import span
from liver_slurm.advisor.model import Constant, Figure, Model, Plane, Tree
from liver_slurm.advisor.summary import TAKE
from liver_slurm.policy.features import MEANINGS


def explain(model: Model) -> Iterator[str]:
    """Tell the verdict, the rule, and what both rest on, line by line."""
    yield f"verdict:  {model.verdict}"
    does = "does what the rule says" if model.advises else "takes whatever is on offer, as greedy does"
    yield f'policy:   standby.policy = "advisor" {does}'
    why = f" ({model.horizon})" if model.horizon else ""
    yield f"outcome:  time gained within {span(model.window_s)} of a decision{why}"
    where = f", for {model.target_decisions} offers elsewhere" if model.target_decisions else ""
    yield f"from:     {model.decisions} decisions of {model.runs} runs{where}"
    if model.effect is not None:
        yield f"taking:   gains {_told(model.effect)} against leaving, on average"
    if model.gain is not None:
        yield f"the rule: gains {_told(model.gain)} against taking always, judged by runs that it was not learned from"
    yield from _worth(model)
    yield from _windows(model)
    yield ""
    yield from _rule(model)
    yield ""
    yield from _support(model)
    for note in model.notes:
        yield f"note: {note}"


def _worth(model: Model) -> Iterator[str]:
    """Compare policies, if there is anything to compare with taking always."""
    shown = [one for one in model.worth if one.gain is not None and one.name != TAKE]
    if shown:
        yield ""
        yield f"against taking always, on {'the offers elsewhere' if model.target_decisions else 'these decisions'}:"
    for one in shown:
        assert one.gain is not None
        yield f"  {one.name + ',':<17} which takes {one.taken:4.0%}: {_told(one.gain)}"


def _windows(model: Model) -> Iterator[str]:
    """Say what taking gains within each window, side by side."""
    if not model.horizons:
        return
    yield ""
    yield "what taking gains against leaving, on average, by how far one looks:"
    for one in model.horizons:
        gains = _told(one.effect) if one.effect is not None else "too few were seen"
        chosen = "  <- counts" if one.window_s == model.window_s else ""
        yield f"  {span(one.window_s):>6}: {gains}; {sum(one.seen)} seen{chosen}"


def _rule(model: Model) -> Iterator[str]:
    rule = model.rule
    learned = "the rule" if model.advises else "the rule that was learned (and is not followed)"
    if isinstance(rule, Constant):
        yield f"{learned}: {'take' if rule.take else 'leave'} always"
    elif isinstance(rule, Plane):
        yield f"{learned}: take where the sum of these is above 0, starting from {rule.intercept:+.2f}"
        parts = sorted(zip(model.columns, rule.weights, strict=True), key=lambda one: -max(map(abs, one[1])))
        for column, weights in parts:
            what = (
                f"{column.feature} is not known" if column.missing else f"{column.feature}: {MEANINGS[column.feature]}"
            )
            bends = "".join(
                f", {weight:+.2f} more above {knot:+g}" for knot, weight in zip(rule.knots, weights[1:], strict=True)
            )
            yield f"  {weights[0]:+8.2f}{bends} a standard deviation of {what}"
    else:
        yield f"{learned}:"
        yield from _question(model, rule, 0, "  ")


def _question(model: Model, rule: Tree, number: int, indent: str) -> Iterator[str]:
    node, answers = rule.nodes[number], rule.answers(number)
    if len(answers) == 1:  # whatever else is asked
        yield f"{indent}{'take' if answers.pop() else 'leave'}"
        return
    column = model.columns[node.column]
    name = f"{column.feature} is not known" if column.missing else f"{column.feature} > {node.threshold:.4g}"
    yield f"{indent}if {name}:"
    yield from _question(model, rule, node.above, indent + "  ")
    yield f"{indent}else:"
    yield from _question(model, rule, node.below, indent + "  ")


def _support(model: Model) -> Iterator[str]:
    for one in model.weights:
        yield (
            f"{one.action}: {one.complete} of {one.decisions} outcomes seen, worth {one.effective:.0f} of equal weight;"
            f" the largest has {one.largest:.1%}"
        )
    if any(model.clipped):
        told = ", ".join(f"{share:.1%}" for share in model.clipped)
        yield f"chances too small to be used as they are (of the action, then of being seen at each window): {told}"
    if model.target_decisions:
        yield f"{model.outside:.0%} of the offers elsewhere are unlike everything here"
    if model.tipping_lost_s is not None:
        yield (
            "the effect of taking would be none if outcomes that were not seen were better where taken, and worse where"
            f" left, by {model.tipping_lost_s:.0f} s than those of like decisions"
        )
    if model.tipping_concept_s is not None:
        less = f"{model.tipping_concept_s:.0f} s"
        yield f"the gain would be gone if the worth of taking differed by {less} between here and there, all else equal"


def _told(figure: Figure) -> str:
    return f"{figure.value:+.1f} s a decision (95 %: {figure.low:+.1f} to {figure.high:+.1f})"
