"""tp_jax: recursive sparse reasoning in diffusion transformers, after arXiv 2604.25299."""

__version__ = "0.1.0"
