"""Training: the experiment's fields, the state, one step, the loop around it, and its checkpoints."""
