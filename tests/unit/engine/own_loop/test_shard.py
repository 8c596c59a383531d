"""A loop of one's own as a shard: its steps one by one, its state as boxes, and what an interrupted step leaves."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from own_loop_lab import JOB, plain_loop, shard_of

from liver_slurm.base.errors import RunIsOver
from liver_slurm.engine.own_loop import engine
from liver_slurm.engine.own_loop.elastic import Elastic
from liver_slurm.engine.own_loop.plain_state import unpack
from liver_slurm.engine.own_loop.shard import LoopShard


def trained(shard: LoopShard, steps: range) -> list[float]:
    return [shard.train_step(engine._OwnSamples(), step).loss for step in steps]


def state_of(shard: LoopShard) -> dict[str, torch.Tensor]:
    return {piece.tensor: view.clone() for piece, view in shard.boxes()}


def test_all_state_has_a_name() -> None:
    with shard_of(plain_loop) as shard:
        moments = [
            f"optimizer.model.{part}.{kind}" for part in ("weight", "bias") for kind in ("exp_avg", "exp_avg_sq")
        ]
        counters = [f"optimizer.model.{part}.step" for part in ("weight", "bias")]
        assert {*state_of(shard)} == {"model.weight", "model.bias", "plain_state", *moments, *counters}
        assert [param.name for param in shard.spec.params] == [piece.tensor for piece, _ in shard.boxes()]
        assert not any(param.trained for param in shard.spec.params), "all of it moves as it is"


def test_a_world_goes_on_where_the_one_before_was() -> None:
    with shard_of(plain_loop) as shard:
        undisturbed = trained(shard, range(6))
        rates = [shard._elastic.declared.lr]
    with shard_of(plain_loop) as old:
        found = trained(old, range(3))
        with shard_of(plain_loop, fresh=False) as new:
            for (_, source), (_, target) in zip(old.boxes(), new.boxes(), strict=True):
                target.copy_(source)
            new.set_step(old.adam_step())
            assert new.steps() == {3}
            found += trained(new, range(3, 6))
            rates.append(new._elastic.declared.lr)
    assert found == undisturbed, "bitwise: the layout is the same"
    assert rates[0] == rates[1] == pytest.approx(0.1 * 0.5**3), "the scheduler has come along"


def test_a_step_says_what_it_was() -> None:
    def loop(elastic: Elastic) -> None:
        model = torch.nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        elastic.register(model=model, optimizer=optimizer)
        for step in elastic.steps():
            assert [*step.samples] == [*range(4 * step.number, 4 * step.number + 4)]
            assert step.weight == 1.0
            optimizer.zero_grad()
            (3.0 * model(torch.ones(1, 1))).sum().backward()
            step.report(step.number + 0.5)
            optimizer.step()

    with shard_of(loop, seq_length=7) as shard:
        result = shard.train_step(engine._OwnSamples(), 2)
    assert (result.step, result.loss, result.lr, result.tokens, result.skipped) == (2, 2.5, 0.25, 28, False)
    assert result.grad_norm == pytest.approx(3.0)


def test_a_loop_whose_world_is_over_is_unwound() -> None:
    told: list[str] = []
    with shard_of(partial(plain_loop, told=told.append)) as shard:
        trained(shard, range(2))
        assert told == []
    assert told == ["unwound"], "what stands behind the loop does not run"
    with shard_of(partial(plain_loop, told=told.append)) as shard:
        trained(shard, range(JOB.train.steps))
        assert told[1:] == ["end", "unwound"], "the last step ends with the function"


class Counting(torch.nn.Module):
    """A weight, and a buffer that counts forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self) -> torch.Tensor:
        self.passes += 1
        return self.weight.sum()


def counting_loop(elastic: Elastic, fails: Any) -> None:
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    elastic.register(model=model, optimizer=optimizer)
    for step in elastic.steps():
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        fails(step.number)
        step.report(loss)
        optimizer.step()


def break_at(step: int, number: int) -> None:
    if number == step:
        raise RuntimeError("a peer is gone")


def test_a_step_that_fails_before_the_update_has_changed_nothing() -> None:
    with shard_of(partial(counting_loop, fails=partial(break_at, 1))) as shard:
        trained(shard, range(1))
        before = state_of(shard)
        with pytest.raises(RuntimeError, match="a peer is gone"):
            trained(shard, range(1, 2))
        assert shard.reached == "nothing"
        after = state_of(shard)
        assert int(after["model.passes"]) == 1, "not even a buffer"
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_update_whose_gradients_are_final_can_be_made_without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    with shard_of(partial(counting_loop, fails=lambda _: None)) as shard:
        trained(shard, range(2))
        undisturbed = state_of(shard)
    with shard_of(partial(counting_loop, fails=lambda _: None)) as shard:
        trained(shard, range(1))
        before = state_of(shard)

        def gone(*_: Any, **__: Any) -> None:
            raise RuntimeError("a peer is gone")

        with monkeypatch.context() as patch:
            patch.setattr(torch.distributed, "all_reduce", gone)
            with pytest.raises(RuntimeError, match="a peer is gone"):
                trained(shard, range(1, 2))
        assert shard.reached == "gradients"
        assert all(torch.equal(before[name], view) for name, view in state_of(shard).items())
        shard.finish_update()
        assert shard.reached == "nothing"
        assert all(torch.equal(undisturbed[name], view) for name, view in state_of(shard).items())


def test_a_step_without_an_update_is_one_that_was_skipped() -> None:
    def loop(elastic: Elastic) -> None:
        for step in elastic.steps():
            step.report(1.0)

    with shard_of(loop) as shard:
        assert shard.train_step(engine._OwnSamples(), 0).skipped


def test_plain_tensors_are_changed_behind_a_meeting_of_all_ranks() -> None:
    def loop(elastic: Elastic) -> None:
        mine = torch.zeros(3)
        elastic.register(mine=mine)
        for step in elastic.steps():
            step.report(0.0)
            step.before_update()
            mine.add_(1.0)

    with shard_of(loop) as shard:
        trained(shard, range(2))
        assert state_of(shard)["mine"].tolist() == [2.0, 2.0, 2.0]


def test_what_fails_while_a_loop_is_unwound_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def loop(elastic: Elastic) -> None:
        try:
            next(elastic.steps())
        finally:
            raise ValueError("no disk")

    with shard_of(loop) as shard:
        shard.clear_caches()
        shard.clear_caches()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "a loop failed as its world was over" in record.message


def test_a_loop_may_leave_its_last_step() -> None:
    def loop(elastic: Elastic, leaves: bool) -> None:
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        elastic.register(model=model, optimizer=optimizer, scheduler=scheduler)
        for step in elastic.steps():
            optimizer.zero_grad()
            model(torch.ones(1, 1)).sum().backward()
            step.report(0.0)
            optimizer.step()
            scheduler.step()
            if leaves and step.number + 1 == elastic.job.train.steps:
                break
        if not leaves:
            model.to(torch.float64)

    found = []
    for leaves in (True, False):
        with shard_of(partial(loop, leaves=leaves)) as shard:
            trained(shard, range(JOB.train.steps))
            found.append(unpack(state_of(shard)["plain_state"])["scheduler"]["last_epoch"])
            with pytest.raises(RunIsOver, match=r"^the loop is over, and was to go on$"):
                shard.finish_update()
    assert found == [JOB.train.steps] * 2, "the last step's numbers are there, too"


def test_a_model_may_be_moved_behind_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    def loop(elastic: Elastic) -> None:
        model = torch.nn.Linear(1, 1)
        elastic.register(model=model)
        for step in elastic.steps():
            step.report(0.0)
            if step.number + 1 == elastic.job.train.steps:
                break
        model.to(torch.float64)

    with shard_of(loop) as shard:
        trained(shard, range(JOB.train.steps))
    (record,) = caplog.records
    assert "numbers of schedulers and optimizers are saved as of the step before the last: model.w" in record.message


def test_a_loop_that_has_failed_is_over() -> None:
    with shard_of(partial(counting_loop, fails=partial(break_at, 0))) as shard:
        with pytest.raises(RuntimeError, match="a peer is gone"):
            trained(shard, range(1))
        with pytest.raises(RunIsOver, match=r"^the loop is over, and was to go on$"):
            trained(shard, range(1))


def test_the_default_group_trains_from_the_first_step_on() -> None:
    found: list[Any] = []

    def loop(elastic: Elastic) -> None:
        found.append(torch.distributed.group.WORLD)
        for step in elastic.steps():
            found.append(torch.distributed.group.WORLD)
            step.report(0.0)

    with shard_of(loop) as shard:
        trained(shard, range(1))
        groups = shard.world.groups
        assert found == [groups["host"], groups["world"]]


def test_a_step_says_the_rate_that_it_was_made_with() -> None:
    with shard_of(plain_loop) as shard:
        rates = [shard.train_step(engine._OwnSamples(), step).lr for step in range(4)]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])


def test_a_world_that_registers_more_is_refused() -> None:
    def more(elastic: Elastic) -> None:
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        elastic.register(model=model, optimizer=optimizer, scheduler=scheduler, warmup=scheduler)
        next(elastic.steps())

    with shard_of(plain_loop) as old, shard_of(more, fresh=False) as new:
        for (_, source), (_, target) in zip(old.boxes(), new.boxes(), strict=True):
            target.copy_(source)
        line = "^the loop registers warmup, and the state that it goes on from has only scheduler, optimizer; a run"
        with pytest.raises(RunIsOver, match=line):
            trained(new, range(1))
