"""FrozenLake: drawn walks, read, played in the environment, and judged."""
