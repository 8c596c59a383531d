"""Where standby jobs come from: the ports that the coordinator knows, and an adapter for each scheduler."""
