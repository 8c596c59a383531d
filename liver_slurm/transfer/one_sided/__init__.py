"""One-sided transfer: a receiver reads boxes straight from their owner's storage into its own, by memory or network."""
