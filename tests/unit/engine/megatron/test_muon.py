"""Muon against plain references, and the matrices that it is for: whole, cut, and made up of several."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from liver_slurm.base.errors import PlanError
from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron import muon
from liver_slurm.engine.megatron.muon import Matrix, Muon, orthogonalised
from liver_slurm.engine.megatron.optimizer import OptimizerState
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import BoxSpec, ParamSpec
from liver_slurm.reshard.tensors import Piece, inside, replayable

WHOLE = Matrix((12, 8), (), None, ())
HEADS = (8, 4, 4)
"""Rows of queries, keys and values in each query group of :func:`job`."""


def job(**model: Any) -> JobConfig:
    section = ModelSection(
        num_layers=2, hidden_size=16, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=24, vocab_size=60
    )
    train = TrainSection(
        steps=1, seq_length=16, global_batch_size=8, optimizer="muon", distributed_optimizer=False, lr=0.1
    )
    return JobConfig(model=dataclasses.replace(section, **model), train=train)


MIXTURE = {
    "num_moe_experts": 4,
    "moe_ffn_hidden_size": 24,
    "moe_shared_expert_intermediate_size": 16,
    "moe_shared_expert_gate": True,
}


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_singular_values(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """What Newton-Schulz steps do to the singular values of a matrix, computed from these."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / matrix.double().norm()
    for step in range(steps):
        a, b, c = muon._COEFFICIENTS[step % 5]
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8), (1, 8)])
@pytest.mark.parametrize(("steps", "dtype", "most"), [(5, torch.float32, 1e-5), (10, torch.float64, 1e-12)])
def test_singular_values_become_about_one(shape: tuple[int, int], steps: int, dtype: torch.dtype, most: float) -> None:
    matrix = drawn(*shape, dtype=dtype)
    found = orthogonalised(matrix, steps)
    assert found.dtype is dtype
    assert (found - by_singular_values(matrix, steps)).abs().max() < most
    assert torch.linalg.svdvals(found.double()).sub(1).abs().max() < 0.3


def test_a_matrix_of_zeros_stays_so() -> None:
    assert orthogonalised(torch.zeros(3, 4), 5).tolist() == [[0.0] * 4] * 3


def group_of(*parameters: torch.nn.Parameter, lr: float = 0.1) -> dict[str, Any]:
    return {"params": list(parameters), "lr": lr, "weight_decay": 0.3, "betas": (0.9, 0.95), "eps": 1e-8}


@pytest.mark.parametrize("nesterov", [True, False])
def test_an_update_is_that_of_a_plain_reference(nesterov: bool) -> None:
    """In fp64: momentum, Nesterov's look ahead, orthogonalisation, scale, and weight decay apart from all of it."""
    train = dataclasses.replace(job().train, muon_momentum=0.8, muon_nesterov=nesterov, muon_scale=0.5)
    parameter = torch.nn.Parameter(drawn(12, 8, dtype=torch.float64))
    optimizer = Muon([group_of(parameter)], {parameter: WHOLE}, train)
    OptimizerState(optimizer).seed(lambda like, dtype: torch.zeros_like(like))
    weight, momentum = parameter.detach().clone(), torch.zeros(12, 8, dtype=torch.float64)
    for step in range(4):
        gradient = parameter.grad = drawn(12, 8, seed=step, dtype=torch.float64)
        optimizer.step()
        momentum = 0.8 * momentum + 0.2 * gradient
        ahead = 0.8 * momentum + 0.2 * gradient if nesterov else momentum
        weight -= 0.1 * 0.3 * weight + 0.1 * 0.5 * math.sqrt(12) * by_singular_values(ahead, 5)
        assert torch.allclose(parameter.detach(), weight, rtol=0, atol=1e-12)
        assert torch.allclose(optimizer.state[parameter]["muon_momentum"], momentum, rtol=0, atol=1e-14)


def test_what_is_no_matrix_is_updated_as_by_adamw() -> None:
    """Bit for bit, in the same group as a matrix."""
    matrix, vectors = torch.nn.Parameter(drawn(12, 8)), [torch.nn.Parameter(drawn(5)), torch.nn.Parameter(drawn(3, 7))]
    others = [torch.nn.Parameter(vector.detach().clone()) for vector in vectors]
    mine = Muon([group_of(vectors[0], matrix, vectors[1])], {matrix: WHOLE}, job().train)
    theirs = torch.optim.AdamW([group_of(*others)], foreach=False)
    OptimizerState(mine).seed(torch.zeros_like)
    for step in range(5):
        for one, other in zip(vectors, others, strict=True):
            one.grad = other.grad = drawn(*one.shape, seed=step)
        matrix.grad = drawn(12, 8)
        mine.step()
        theirs.step()
    for one, other in zip(vectors, others, strict=True):
        assert torch.equal(one, other)
        assert {*mine.state[one]} == {"exp_avg", "exp_avg_sq"}
        assert all(torch.equal(mine.state[one][name], theirs.state[other][name]) for name in mine.state[one])
    assert {*mine.state[matrix]} == {"muon_momentum"}
    assert OptimizerState(mine).step == 5


def test_a_moved_matrix_goes_on_as_if_it_had_stayed() -> None:
    stayed = torch.nn.Parameter(drawn(12, 8))
    old = Muon([group_of(stayed)], {stayed: WHOLE}, job().train)
    OptimizerState(old).seed(torch.zeros_like)

    def train(optimizer: Muon, parameter: torch.nn.Parameter, steps: range) -> None:
        for step in steps:
            parameter.grad = drawn(12, 8, seed=step)
            optimizer.step()

    train(old, stayed, range(3))
    moved = torch.nn.Parameter(stayed.detach().clone())
    new = Muon([group_of(moved)], {moved: WHOLE}, job().train)
    OptimizerState(new).seed(torch.empty_like)
    new.state[moved]["muon_momentum"].copy_(old.state[stayed]["muon_momentum"])
    OptimizerState(new).step = OptimizerState(old).step
    train(old, stayed, range(3, 6))
    train(new, moved, range(3, 6))
    assert torch.equal(stayed, moved)
    assert OptimizerState(new).step == OptimizerState(old).step == 6


def test_queries_keys_and_values_are_matrices_of_their_own() -> None:
    """Those of all query groups together: rows of two groups, of two queries, a key and a value."""
    rows, seen = torch.arange(8.0).view(8, 1) * torch.ones(1, 3), []

    def negated(some: torch.Tensor) -> torch.Tensor:
        seen.append(some[:, 0].tolist())
        return -some

    assert torch.equal(Matrix((8, 3), (), None, (2, 1, 1)).each(rows, negated), -rows)
    assert seen == [[0.0, 1.0, 4.0, 5.0], [2.0, 6.0], [3.0, 7.0]]


class Ranks:
    """Stand-in for a process group of tensor parallel ranks, of which it is the ``place``-th."""

    def __init__(self, size: int, place: int) -> None:
        self._size, self._place = size, place

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._place


def shard_of(param: ParamSpec, whole: torch.Tensor) -> torch.Tensor:
    """A rank's part of a global tensor."""
    places = (
        inside(box.offset, box.shape, Piece(box.tensor, (0,) * whole.dim(), (*whole.shape,))) for box in param.boxes
    )
    return torch.cat([whole[place].reshape(-1) for place in places])


def peers_send(monkeypatch: pytest.MonkeyPatch, shards: list[torch.Tensor]) -> list[int]:
    """Have the others' shards arrive; returns how many elements were gathered, for each time."""
    gathered: list[int] = []

    def gather(whole: torch.Tensor, part: torch.Tensor, group: Ranks) -> None:
        assert torch.equal(part, shards[group.rank()])
        whole.copy_(torch.cat(shards))
        gathered.append(whole.numel())

    monkeypatch.setattr(muon, "gather_into", gather)
    return gathered


@pytest.mark.parametrize("model", [{}, {"gated_linear_unit": False}, MIXTURE], ids=["gated", "plain", "experts"])
@pytest.mark.parametrize("layout", [Layout(2, 1, 1), Layout(2, 2, 2, ep=2)], ids=str)
def test_a_cut_matrix_is_gathered_as_it_is_in_any_layout(
    model: dict[str, Any], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "num_moe_experts" not in model and layout.ep > 1:
        layout = dataclasses.replace(layout, ep=1)
    world, seen = world_spec(job(**model), layout), set()
    for (part, pp), shard in world.shards.items():
        if part % layout.tp:
            continue
        peers = [world.shards[part + tp, pp].params for tp in range(layout.tp)]
        for params in zip(*peers, strict=True):
            if replayable(params[0].moments):
                continue
            info = world.weights[params[0].boxes[0].tensor]
            truth = drawn(*info.shape, seed=len(seen))
            shards = [shard_of(param, truth) for param in params]
            gathered = peers_send(monkeypatch, shards)
            alone = truth[tuple(params[0].boxes[0].offset[:-2])]
            for tp, (param, mine) in enumerate(zip(params, shards, strict=True)):
                matrix = Matrix.of(param, Ranks(layout.tp, tp), HEADS)
                found = matrix.whole(mine.view(-1, alone.shape[1] if matrix.group is None else 1))
                assert torch.equal(found, alone), param.name
                assert torch.equal(matrix.shard(found).reshape(-1), mine)
                assert bool(matrix.heads) == param.name.endswith("linear_qkv.weight")
            seen.add((info.name.rpartition("layers.")[2], bool(gathered)))
        assert shard.params
    expected = {("self_attention.linear_qkv.weight", True), ("self_attention.linear_proj.weight", True)}
    if "num_moe_experts" in model:
        expected |= {("mlp.router.weight", False), ("mlp.shared_experts.gate_weight", False)}
    assert expected < seen
    assert {name for name, gathered in seen if not gathered} <= {name for name, _ in expected}


def test_an_update_is_made_without_peers_once_it_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """And gathering leaves the state as it is, so a step that ends there can be made again from its batch."""
    param = ParamSpec("w", 48, "float32", (BoxSpec("w", (12, 8), (6, 0), (6, 8), 0),), moments=("muon_momentum",))
    whole, gradients = drawn(12, 8), drawn(12, 8, seed=2)
    parameter = torch.nn.Parameter(whole[6:].clone())
    optimizer = Muon([group_of(parameter)], {parameter: Matrix.of(param, Ranks(2, 1), HEADS)}, job().train)
    OptimizerState(optimizer).seed(torch.zeros_like)
    parameter.grad = gradients[6:].clone()
    # before the first update the momentum with its look ahead is a part of the gradient
    ahead = 0.05 * (1 + 0.95) * gradients
    peers_send(monkeypatch, [ahead[:6].reshape(-1), torch.zeros(48).lerp(parameter.grad.view(-1), 0.05)])
    nesterov = parameter.grad.lerp(torch.zeros(6, 8).lerp(parameter.grad, 0.05), 0.95)
    gathered = peers_send(monkeypatch, [ahead[:6].reshape(-1), nesterov.reshape(-1)])
    OptimizerState(optimizer).gather()
    assert gathered == [96]
    assert torch.equal(parameter, whole[6:])
    assert not optimizer.state[parameter]["muon_momentum"].any()
    monkeypatch.setattr(muon, "gather_into", None)
    optimizer.step()
    alone = torch.nn.Parameter(whole.clone())
    other = Muon([group_of(alone)], {alone: WHOLE}, job().train)
    OptimizerState(other).seed(torch.zeros_like)
    alone.grad = gradients
    other.step()
    assert torch.allclose(parameter, alone[6:], rtol=0, atol=1e-6)


def test_a_matrix_that_is_cut_in_another_way_is_refused() -> None:
    param = ParamSpec("w", 24, "float32", (BoxSpec("w", (12, 8), (0, 0), (3, 8), 0),), moments=("muon_momentum",))
    with pytest.raises(PlanError, match=r'^w: muon knows matrices .*; set train.optimizer = "adam"$'):
        Matrix.of(param, Ranks(2, 0), HEADS)


def adams(config: JobConfig) -> set[str]:
    """Names of the weights that Muon is not for."""
    world = world_spec(config, Layout(1, 1, 1))
    return {name for name, moments in world.moments.items() if replayable(moments)}


def test_embeddings_the_output_layer_and_vectors_are_no_matrices() -> None:
    norms = {
        "decoder.final_layernorm.weight",
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    }
    word, output, positions = (
        "embedding.word_embeddings.weight",
        "output_layer.weight",
        "embedding.position_embeddings.weight",
    )
    untied = {"share_embeddings_and_output_weights": False}
    assert adams(job()) == {*norms, word}
    assert adams(job(**untied)) == {*norms, word, output}
    assert adams(job(position_embedding_type="learned_absolute", **untied, **MIXTURE)) == {
        *norms,
        word,
        output,
        positions,
    }
    biased = adams(job(add_bias_linear=True))
    assert biased - adams(job()) == {name for name in biased if name.endswith("bias")} != set()


def test_a_plan_has_one_moment_of_matrices() -> None:
    found: dict[str, set[str]] = {}
    for tensor in world_spec(job(), Layout(2, 1, 1)).tensors:
        weight, _, kind = tensor.partition("@")
        found.setdefault(weight, set()).add(kind)
    assert found["decoder.layers.mlp.linear_fc1.weight"] == {"", "muon_momentum"}
    assert found["embedding.word_embeddings.weight"] == {"", "exp_avg", "exp_avg_sq"}
