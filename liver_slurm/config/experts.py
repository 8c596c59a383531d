"""What does not go with a mixture of experts, and settings of one where there is none."""

from __future__ import annotations

from collections.abc import Iterator

from liver_slurm.config.problem import Problem
from liver_slurm.config.schema import ModelSection

_KEYS = (
    "moe_router_topk",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_enable_expert_bias",
    "moe_router_bias_update_rate",
    "moe_ffn_hidden_size",
    "moe_aux_loss_coeff",
    "moe_z_loss_coeff",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
)


def expert_problems(model: ModelSection) -> Iterator[Problem]:
    """Find what does not go with experts, and settings of experts where there are none."""
    experts, chosen = model.num_moe_experts, model.moe_router_topk
    if experts is None:
        defaults = ModelSection()
        for key in _KEYS:
            if getattr(model, key) != getattr(defaults, key):
                yield Problem(f"model.{key}", "has no use without experts; allowed: model.num_moe_experts too")
        return
    if model.provider is not None or model.extra:
        other = "provider" if model.provider is not None else "extra"
        yield Problem("model.num_moe_experts", f"is for models without model.{other}; allowed: one of the two")
    if chosen > experts:
        yield Problem("model.moe_router_topk", f"{chosen} is above num_moe_experts; allowed: at most {experts}")
    if chosen == 1 and not (model.moe_router_pre_softmax or model.moe_router_score_function == "sigmoid"):
        text = "false weighs each token's only expert with 1, so that no router is learnt; allowed: true"
        yield Problem("model.moe_router_pre_softmax", f"{text}, or moe_router_topk >= 2")
    if model.add_bias_linear:
        yield Problem("model.add_bias_linear", "true is not possible with experts; allowed: false")
    if model.moe_shared_expert_gate and model.moe_shared_expert_intermediate_size is None:
        text = "has no use without a shared expert; allowed: moe_shared_expert_intermediate_size too"
        yield Problem("model.moe_shared_expert_gate", text)
    yield from _router(model)


def _router(model: ModelSection) -> Iterator[Problem]:
    sigmoid, rate = model.moe_router_score_function == "sigmoid", model.moe_router_bias_update_rate
    if sigmoid and model.moe_router_pre_softmax:
        text = 'true has no meaning without a softmax; allowed: false, or moe_router_score_function = "softmax"'
        yield Problem("model.moe_router_pre_softmax", text)
    if model.moe_router_enable_expert_bias and not sigmoid:
        text = "true is for scores between 0 and 1, that a bias can be added to; allowed: false, or "
        yield Problem("model.moe_router_enable_expert_bias", text + 'moe_router_score_function = "sigmoid"')
    if rate != ModelSection().moe_router_bias_update_rate and not model.moe_router_enable_expert_bias:
        text = f"{rate} has no use without a bias; allowed: leave it out, or moe_router_enable_expert_bias too"
        yield Problem("model.moe_router_bias_update_rate", text)
