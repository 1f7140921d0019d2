"""From a workdir to pictures."""
