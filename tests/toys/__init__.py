"""A model, a sampler, a source and a suite that the package doesn't have, each in one file."""
