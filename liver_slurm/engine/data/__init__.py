"""Real data: text to megatron's indexed datasets, and samples out of them in an order that no resize can change."""
