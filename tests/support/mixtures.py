"""Keys of ``[model]`` for small mixtures of experts."""

from __future__ import annotations

from typing import Any

EXPERTS: dict[str, Any] = {"num_query_groups": 4, "num_moe_experts": 4, "moe_ffn_hidden_size": 32}
BIASES: dict[str, Any] = {
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_bias_update_rate": 0.03,
}
"""Load is balanced by biases of the router that each step moves."""
MIXTURE: dict[str, Any] = {
    **EXPERTS,
    "moe_aux_loss_coeff": 0.1,
    "moe_z_loss_coeff": 0.01,
    "moe_shared_expert_intermediate_size": 16,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}
"""With a shared expert, balanced by a loss, and with dropout."""
