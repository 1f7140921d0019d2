"""Trained models as files for others: `tp_jax.export`."""
