"""Megatron-LM's own checkpoints, in its format torch_dist, in and out."""
