"""Training: the loop, the train step, periodic actions and saving checkpoints."""
