"""The axes of the device mesh, and sizes of them. This module doesn't import jax."""

AXES = ("slices", "data", "fsdp", "tensor", "expert")
# The batch is sharded over every axis except `tensor`, which shards the computation in a layer.
BATCH_AXES = ("slices", "data", "fsdp", "expert")
ONE_DEVICE = dict.fromkeys(AXES, 1)
# `slices` = 0 means the number of TPU slices found; -1 takes the remaining devices.
DATA_PARALLEL = ONE_DEVICE | {"slices": 0, "data": -1}
