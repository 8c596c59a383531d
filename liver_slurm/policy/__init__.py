"""When the world grows and into which layout: the interface of policies, and what they decide from. Pure."""
