"""Generate images with the model of a workdir."""
