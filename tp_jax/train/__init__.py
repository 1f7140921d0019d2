"""Training: the loop, its step, and what is kept."""
