"""What the coordinator decides: state and input in, state and actions out. Pure."""
