"""What a loop may not do, each with the line that says so."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from own_loop_lab import shard_of

from liver_slurm.base.errors import RunIsOver
from liver_slurm.engine.own_loop import engine
from liver_slurm.engine.own_loop.elastic import Elastic

Loop = Callable[[Elastic], None]


def no_loop(elastic: Elastic) -> None:
    elastic.register(weight=torch.zeros(1))


def parses_the_command_line(elastic: Elastic) -> None:
    del elastic
    sys.exit(2)  # as argparse does with arguments that are ours


def leaves_in_a_step(elastic: Elastic) -> None:
    elastic.register(one=torch.zeros(1))
    for _ in elastic.steps():
        sys.exit()


def undeclared_parameter(elastic: Elastic) -> None:
    model, more = torch.nn.Linear(2, 2), torch.nn.Linear(3, 2)
    elastic.register(model=model, optimizer=torch.optim.SGD([*model.parameters(), *more.parameters()], lr=1.0))
    next(elastic.steps())


def undeclared_tensor(elastic: Elastic) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].mask = torch.ones(2)
    elastic.register(model=model)
    next(elastic.steps())


def twice(elastic: Elastic) -> None:
    elastic.register(one=torch.zeros(1))
    elastic.register(one=torch.zeros(1))


def no_state(elastic: Elastic) -> None:
    elastic.register(steps=3)


def late(elastic: Elastic) -> None:
    next(elastic.steps())
    elastic.register(one=torch.zeros(1))


def two_loops(elastic: Elastic) -> None:
    next(elastic.steps())
    next(elastic.steps())


def not_reported(elastic: Elastic) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    elastic.register(model=model, optimizer=optimizer)
    for _ in elastic.steps():
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()


def with_closure(elastic: Elastic) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    elastic.register(model=model, optimizer=optimizer)
    for step in elastic.steps():
        step.report(0.0)
        optimizer.step(lambda: model(torch.ones(1, 1)).sum())


def outside(elastic: Elastic) -> None:
    elastic.register(table=elastic.sharded(torch.zeros(3, 2), (4, 2), (2, 0)))
    next(elastic.steps())


def divided_among_replicas(elastic: Elastic) -> None:
    elastic.register(table=elastic.sharded(torch.zeros(2, 2), (4, 2), (2, 0)))
    next(elastic.steps())


def complex_numbers(elastic: Elastic) -> None:
    elastic.register(phase=torch.zeros(2, dtype=torch.complex64))
    next(elastic.steps())


def elsewhere(elastic: Elastic) -> None:
    elastic.register(model=torch.nn.Linear(2, 2, device="meta"))
    next(elastic.steps())


class Opaque:
    """Its state is no plain data."""

    def state_dict(self) -> dict[str, object]:
        return {"what": object()}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        del state_dict


def opaque(elastic: Elastic) -> None:
    elastic.register(thing=Opaque())
    next(elastic.steps())


def omits_a_parameter(elastic: Elastic) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.register_state_dict_post_hook(lambda _module, state, *_: state.__delitem__("0.bias"))
    elastic.register(model=model)
    next(elastic.steps())


def steps_twice(elastic: Elastic) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    elastic.register(model=model, discriminator=optimizer)
    for step in elastic.steps():
        model(torch.ones(1, 1)).sum().backward()
        step.report(0.0)
        optimizer.step()
        optimizer.step()


def group_before_the_update(elastic: Elastic) -> None:
    model, more = torch.nn.Linear(1, 1), torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    elastic.register(model=model, optimizer=optimizer)
    for step in elastic.steps():
        model(torch.ones(1, 1)).sum().backward()
        optimizer.add_param_group({"params": [more.weight]})
        step.report(0.0)
        optimizer.step()


def returns_early(elastic: Elastic) -> None:
    for step in elastic.steps():
        step.report(0.0)
        return


def breaks_behind_the_update(elastic: Elastic) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    elastic.register(model=model, optimizer=optimizer)
    for step in elastic.steps():
        model(torch.ones(1, 1)).sum().backward()
        step.report(0.0)
        optimizer.step()
        break


@pytest.mark.parametrize(
    ("loop", "line"),
    [
        (no_loop, r"^a:loop has returned without a loop over elastic.steps\(\)$"),
        (parses_the_command_line, r"^train.loop called sys.exit\(2\); a loop that is over returns$"),
        (leaves_in_a_step, r"^train.loop called sys.exit\(None\)"),
        (undeclared_parameter, r"^optimizer trains a tensor of shape \(2, 3\) that nobody declared; register the mod"),
        (undeclared_tensor, r"^model.0.mask is a tensor that nobody declared; make it a parameter or a buffer"),
        (twice, r"^elastic.register: there is a one already"),
        (no_state, r"^elastic.register: steps is a int; allowed: modules, optimizers, tensors, and objects with"),
        (late, r"^elastic.register is called after the first step"),
        (two_loops, r"^elastic.steps\(\) is called twice"),
        (not_reported, r"^step 0 of the loop changes state before step.report\(loss\) is called$"),
        (with_closure, r"^SGD.step is called with a closure, which would make gradients when all ranks take them"),
        (outside, r"^table: a part of shape \(3, 2\) at \(2, 0\) does not lie in a tensor of \(4, 2\)$"),
        (
            divided_among_replicas,
            r"^table is divided, and all ranks of tp1pp1dp1 are replicas; divide over elastic.mesh",
        ),
        (complex_numbers, r"^phase has dtype complex64, which is not moved; allowed: float32"),
        (elsewhere, r"^model.weight lies on meta; allowed: elastic.device, which is cpu here$"),
        (omits_a_parameter, r"^model.0.bias is a parameter that model.state_dict\(\) leaves out; have it there"),
        (steps_twice, r"^discriminator.step\(\) is called twice in step 0 of the loop"),
        (group_before_the_update, r"^optimizer trains a tensor of shape \(1, 3\) that nobody declared"),
        (returns_early, r"^the loop has returned in step 0 of the run, counted from 0, which has 6: it may leave"),
        (breaks_behind_the_update, r"^the loop has returned in step 0 of the run"),
        (opaque, r"^the state of thing is not numbers, text, lists and dictionaries: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(loop: Loop, line: str) -> None:
    with pytest.raises(RunIsOver, match=line) as caught, shard_of(loop) as shard:
        shard.train_step(engine._OwnSamples(), 0)
    assert "\n" not in str(caught.value)


def test_a_tied_weight_is_state_once_and_what_is_left_out_is_none() -> None:
    def loop(elastic: Elastic) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        model[0].mask, model[1].same = torch.ones(2), torch.zeros(2)
        model.register_buffer("turn", torch.ones(1), persistent=False)
        model.first_turn = model.turn
        elastic.leave_out(model[0].mask)
        elastic.register(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), same=model[1].same)
        next(elastic.steps())

    with shard_of(loop) as shard:
        assert [piece.tensor for piece, _ in shard.boxes()] == ["model.0.weight", "same", "plain_state"]


def test_an_omitted_parameter_may_be_declared_otherwise() -> None:
    def loop(elastic: Elastic) -> None:
        model = torch.nn.Linear(2, 2)
        model.register_parameter("frozen", torch.nn.Parameter(torch.zeros(2), requires_grad=False))
        for key in ("bias", "frozen"):
            model.register_state_dict_post_hook(lambda _module, state, *_, key=key: state.__delitem__(key))
        elastic.leave_out(model.frozen)
        elastic.register(model=model, bias=model.bias)
        next(elastic.steps())

    with shard_of(loop) as shard:
        assert [piece.tensor for piece, _ in shard.boxes()] == ["model.weight", "bias", "plain_state"]
