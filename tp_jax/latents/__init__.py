"""Codecs between pixels and the latents that a model diffuses."""
