"""Between pixels and the latents that a model diffuses."""
