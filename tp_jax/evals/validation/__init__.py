"""The validation suite: the denoising loss on examples that training never reads."""
