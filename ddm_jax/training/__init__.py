"""Train state, step, loop, optimizer, checkpoints and metric writers."""
