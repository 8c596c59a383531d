"""The engine on megatron-core: model, optimizer, boxes of state, checkpoints."""
