"""Which of several layouts a world should take: a cost model that is stated, not measured.

Estimated time of one step, in floating-point operations of one worker (only ratios between layouts matter)::

    m         = microbatches of a step = global_batch_size / micro_batch_size
    mine      = ceil(m / dp), microbatches of the busiest replica
    own       = microbatch_tokens / cp
    compute   = step_flops / (tp·cp·pp·dp) · (mine·dp / m)     replicas with fewer microbatches wait for the busiest
    tp_cost   = BALANCE · 4 all-reduces · 2(tp-1)/tp · hidden · element_size · (layers/pp) · mine · own
    cp_cost   = BALANCE · 2 gathers · 2·keys · element_size · (cp-1)/tp · (layers/pp) · mine · own
    ep_cost   = BALANCE · 2 gathers, 2 sums · (ep·etp/tp-1) · hidden · element_size · (layers/pp) · mine · own
                                                           tp_cost takes experts to be cut as all else is; a shared
                                                           one always is, so etp ≠ tp adds (tp-1)/tp where there is
    vpp_cost  = BALANCE · 2 sends · (vpp-1) · hidden · element_size · mine · own        more than without interleaving
    bubble    = 1 + (pp-1)/(vpp·mine)                          1F1B: stages idle while the pipeline fills and drains,
                                                               with interleaving in steps of a chunk each
    dp_cost   = BALANCE · 2(r-1)/r · 4 bytes · parameters/(tp·pp)       r = dp·cp ranks reduce the same gradients;
                                                           of experts, a part of 1/(ep·etp) each,
                                                           r = tp·dp·cp/(ep·etp) ranks do
    estimate  = (compute + tp_cost + cp_cost + ep_cost + vpp_cost) · bubble + dp_cost

With a loop of the user's own nothing is known of the model, and all ranks divide the samples: the estimate is
ceil(m / ranks).

A layer's step costs 6 flops per token and weight that it meets, and 12·hidden·seq_length per token for attention scores
(Narayanan et al., 2021, with a factor of 3 for forward and backward; the bubble is theirs, too). ``keys`` is the width
of all query groups' keys. BALANCE is how many flops a worker does while one byte crosses to its neighbour: 16 for a CPU
core and gloo, 1000 for a GPU. Estimates within 1 % of the best are equal; among equals the one with fewer workers wins,
for no node is held that makes nothing faster; then the one that moves less state, then the order that the layouts came
in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

from liver_slurm.base.once import OncePer
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import expert_weights, expert_width
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World

TIE = 1.01
CPU_BALANCE, GPU_BALANCE = 16.0, 1000.0


class _Estimates(dict[Layout, float]):
    """The estimates of one job's layouts, each made when it is asked for first: a run of thousands of workers has
    hundreds of layouts, and chooses among them for each worker that comes."""

    def __init__(self, config: JobConfig) -> None:
        super().__init__()
        self._config = config

    def __missing__(self, layout: Layout) -> float:
        self[layout] = cost = _estimate(layout, self._config)
        return cost


_ESTIMATES = OncePer(_Estimates)


def estimate(layout: Layout, config: JobConfig) -> float:
    """Return the estimated time of one step, in flops of one worker."""
    return _ESTIMATES(config)[layout]


def _estimate(layout: Layout, config: JobConfig) -> float:
    model, train = config.model, config.train
    hidden, layers = model.hidden_size or 1024, model.num_layers or layout.pp  # a provider may leave sizes out
    tokens = train.seq_length * train.micro_batch_size
    microbatches = max(1, train.global_batch_size // train.micro_batch_size)
    if train.loop is not None:
        return float(-(-microbatches // layout.size))
    mine = -(-microbatches // layout.dp)

    weights = layer_weights(config, hidden)
    parameters = layers * weights + (model.vocab_size or 256) * hidden
    active = parameters - layers * (weights - layer_weights(config, hidden, met=True))
    flops_of_microbatch = tokens * (6 * active + 12 * layers * hidden * train.seq_length)
    compute = mine * flops_of_microbatch / (layout.tp * layout.cp * layout.pp)

    balance = GPU_BALANCE if any(component.gpus_per_task for component in config.live.component) else CPU_BALANCE
    element = 4 if train.precision == "fp32" else 2
    ring = 2 * (layout.tp - 1) / layout.tp
    own = tokens / layout.cp
    tp_cost = balance * 4 * ring * hidden * element * layers / layout.pp * mine * own
    keys = hidden * (model.query_groups or 1) / (model.num_attention_heads or 1)
    cp_cost = balance * 2 * 2 * keys * element * (layout.cp - 1) / layout.tp * layers / layout.pp * mine * own
    vpp_cost = balance * 2 * (layout.vpp - 1) * hidden * element * mine * own
    bubble = 1 + (layout.pp - 1) / (layout.vpp * mine)
    gathered = layout.ep * layout.etp / layout.tp - 1
    if model.moe_shared_expert_intermediate_size and layout.etp != layout.tp:
        gathered += ring / 2
    ep_cost = balance * 4 * gathered * hidden * element * layers / layout.pp * mine * own
    experts = (model.num_moe_experts or 0) * layers * expert_weights(model)
    reduced = [
        (layout.dense_replicas, (parameters - experts) / layout.tp),
        (layout.edp, experts / layout.expert_parts),
    ]
    dp_cost = sum(balance * 2 * (ranks - 1) / ranks * 4 * part / layout.pp for ranks, part in reduced)
    return (compute + tp_cost + cp_cost + ep_cost + vpp_cost) * bubble + dp_cost


def choose(
    layouts: Sequence[Layout],
    config: JobConfig,
    live: World | None,
    members_of: Callable[[Layout], tuple[str, ...]],
) -> tuple[Layout, str]:
    """Return the best of ``layouts`` (not empty), and why.

    ``members_of`` says who would be in its world, in rank order.
    """
    known = _ESTIMATES(config)
    costs = [known[layout] for layout in layouts]
    limit = min(costs) * TIE
    near = list(dict.fromkeys(layout for layout, cost in zip(layouts, costs, strict=True) if cost <= limit))
    equal = Counter(layout.size for layout in near)

    def rank(layout: Layout) -> tuple[float, ...]:
        # What a layout moves takes its time to compute, in a world of thousands.
        moved = moved_share(live, layout, members_of(layout)) if equal[layout.size] > 1 else 0.0
        return (layout.size, moved)

    best, *others = sorted(near, key=rank)
    if not others:
        slower = [(cost, layout) for cost, layout in zip(costs, layouts, strict=True) if cost > limit]
        if not slower:
            return best, f"{best} is the only allowed layout"
        cost, second = min(slower, key=lambda one: one[0])
        return best, f"{best}: step estimated {cost / known[best] - 1:.0%} shorter than with {second}"
    second = others[0]
    if second.size > best.size:
        return best, f"{best}: as fast as {second}, with fewer workers"
    return best, f"{best}: as fast as {second}, and moves no more state"


def moved_share(live: World | None, layout: Layout, members: tuple[str, ...]) -> float:
    """Return the share of the new world's state that its members do not hold already, with layers and matrices cut
    evenly."""
    if live is None:
        return 1.0
    old_rank = {member: rank for rank, member in enumerate(live.members)}
    held = 0.0
    for rank, member in enumerate(members):
        if member in old_rank:
            new, old = layout.coordinates(rank), live.layout.coordinates(old_rank[member])
            held += _overlap(new.tp, layout.tp, old.tp, live.layout.tp) * _layers_kept(
                layout, new.pp, live.layout, old.pp
            )
    return 1.0 - held / layout.size


def _layers_kept(layout: Layout, pp: int, live: Layout, live_pp: int) -> float:
    """Return the share of a stage's layers that a stage of the live layout has."""
    pairs = product(layout.chunks(pp), live.chunks(live_pp))
    common = sum(_overlap(one, layout.virtual_stages, other, live.virtual_stages) for one, other in pairs)
    return common / layout.vpp


def _overlap(part: int, parts: int, other: int, others: int) -> float:
    """Return the share of interval ``part`` of ``parts`` that interval ``other`` of ``others`` covers."""
    low, high = max(part / parts, other / others), min((part + 1) / parts, (other + 1) / others)
    return max(0.0, high - low) * parts


def layer_weights(config: JobConfig, hidden: int, met: bool = False) -> float:
    """Return the parameters of one transformer layer, norms and biases left out.

    Args:
        met: only those that a token meets: it goes to some of the experts.
    """
    model = config.model
    heads = model.num_attention_heads or 1
    groups = model.query_groups or heads
    head = model.kv_channels or hidden / heads
    attention = hidden * head * (2 * heads + 2 * groups)
    matrices = (3 if model.gated_linear_unit else 2) * hidden
    if model.num_moe_experts is None:
        return attention + matrices * (model.ffn_width or 4 * hidden)
    experts = min(model.moe_router_topk, model.num_moe_experts) if met else model.num_moe_experts
    shared = model.moe_shared_expert_intermediate_size or 0
    return attention + matrices * (experts * expert_width(model) + shared) + model.num_moe_experts * hidden
