"""The engine behind a training loop of the user's own: what it declares is moved, and its steps are counted."""
