"""What is allowed in the config fields that no dataclass describes."""

from typing import Annotated, Any

from tp_jax.values import kinds
from tp_jax.values.allowed import Choice, Range

# annotation -> fields. Booleans need no entry.
ALLOWED: dict[Any, tuple[str, ...]] = {
    kinds.Seed: ("seed",),
    kinds.Count: (
        "train.steps", "train.log_every", "train.sample_every", "checkpoint.every_steps",
        "checkpoint.keep", "prepare.records_per_shard", "evaluation.every_steps",
    ),
    kinds.CountOrZero: (
        "optimizer.warmup_steps", "checkpoint.keep_every_steps", "prepare.num", "prepare.captions",
        "evaluation.shapes.num",
    ),
    kinds.Images: (
        "train.batch_size", "train.accumulate", "prepare.batch_size", "evaluation.batch_size",
        "evaluation.frozenlake.num",
    ),
    Annotated[int, Range(2, 2**24)]: ("evaluation.adm.num", "evaluation.digits.num"),
    kinds.SizeOrZero: ("train.samples", "autoencoder.tile", "autoencoder.pool"),
    kinds.Size: ("text.clip_tokens", "text.t5_tokens"),
    Annotated[int, Range(0, 1024)]: ("data.workers",),
    Annotated[int, Range(-1, kinds.INT32)]: (
        "mesh.slices", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.expert",
    ),
    Annotated[float, Range(0, 10**9)]: ("train.hang_seconds",),
    kinds.NonNegative: (
        "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm",
        "train.deep_supervision",
    ),
    kinds.Decay: ("train.ema_decay", "train.condition_dropout", "optimizer.b1", "optimizer.b2"),
    kinds.Dtype: ("autoencoder.dtype", "text.dtype"),
    Annotated[str, Choice("thinking", "all")]: ("train.trainable",),
    Annotated[str, Choice("constant", "cosine")]: ("optimizer.schedule",),
    Annotated[str, Choice("empty", "zeros")]: ("text.null",),
    kinds.Path: ("data.dir", "prepare.dir", "evaluation.adm.reference"),
    kinds.Source: ("init.base", "autoencoder.path", "text.path", "evaluation.adm.inception"),
    tuple[kinds.Word, ...]: ("data.columns", "prepare.columns"),
    tuple[Annotated[str, Choice("tensorboard", "wandb", "trackio")], ...]: ("log.writers",),
    kinds.Word: (
        "data.source", "data.split", "data.background", "prepare.source", "prepare.split",
        "text.encoder", "evaluation.suite", "log.project", "evaluation.adm.protocol",
    ),
}  # fmt: skip
