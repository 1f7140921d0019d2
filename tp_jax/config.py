"""Every field that a config has, its default, and what is built from it.

The fields of `model`, `model.thinking`, `diffusion` and `sampling` are those of the dataclasses
that use them, so there is one list of each. A config is locked: a key that isn't here is an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from tp_jax.diffusion import OBJECTIVES, SamplerConfig
from tp_jax.messages.errors import UserError
from tp_jax.models import MODELS, TransformerConfig
from tp_jax.models.dit_config import check_decodable
from tp_jax.thinking import ThinkingConfig
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig

if TYPE_CHECKING:
    from tp_jax.diffusion.objective import Objective

TRAINABLE = ("thinking", "all")
SCHEDULES = ("constant", "cosine")
# The least value of fields that no dataclass checks.
LEAST = {
    1: (
        "train.steps", "train.batch_size", "train.accumulate", "train.log_every",
        "train.sample_every", "checkpoint.every_steps", "checkpoint.keep", "model.mlp_ratio",
        "prepare.records_per_shard", "prepare.batch_size", "evaluation.every_steps",
        "evaluation.batch_size",
    ),
    0: (
        "seed", "data.workers", "train.samples", "train.hang_seconds", "sampling.guidance_channels",
        "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.clip_norm",
        "checkpoint.keep_every_steps", "autoencoder.tile", "autoencoder.pool",
        "prepare.num", "prepare.captions",
    ),
}  # fmt: skip


def default(model: str = "dit", diffusion: str = "gaussian") -> ConfigDict:
    """A full, locked config.

    Args:
      model: a key of `MODELS`.
      diffusion: a key of `OBJECTIVES`.
    """
    config = ConfigDict()
    config.seed = 0

    config.init = ConfigDict()
    # A base checkpoint, or a workdir whose EMA becomes the base; "" starts from random weights.
    config.init.base = ""

    config_class, _ = MODELS[model]
    fields = dataclasses.asdict(config_class())
    # The objective decides what the model predicts.
    del fields["out_channels"]
    config.model = ConfigDict({"kind": model} | fields)
    objective_class, _ = OBJECTIVES[diffusion]
    fields = dataclasses.asdict(objective_class())
    config.diffusion = ConfigDict({"kind": diffusion} | fields)
    config.sampling = ConfigDict(dataclasses.asdict(SamplerConfig()))
    config.sampling.sampler = objective_class.default_sampler

    config.autoencoder = ConfigDict()
    # A folder made by `tp_jax.convert --kind=sd-vae`; "" diffuses what the source holds.
    config.autoencoder.path = ""
    # Without a folder: latents are means of so many pixels a side, and are enlarged; 0 has none.
    config.autoencoder.pool = 0
    config.autoencoder.dtype = "float32"
    # Pixels a side of the overlapping tiles that large images are cut into; 0 takes them whole.
    config.autoencoder.tile = 0

    # Of models that take text: "shapes" knows the few words of `tp_jax.worlds.shapes`; "sd3" is
    # CLIP and T5 in `path`, a folder laid out as Stable Diffusion 3's in diffusers.
    config.text = ConfigDict()
    config.text.encoder = "sd3"
    config.text.path = ""
    # Without T5 its tokens are zeros, as SD3 allows.
    config.text.t5 = True
    config.text.clip_tokens = 77
    config.text.t5_tokens = 77
    # What dropout and guidance take for no prompt: "empty", as the encoder encodes it, or "zeros".
    config.text.null = "empty"
    # Longer prompts are cut, which is said, instead of refused.
    config.text.truncate = False
    config.text.dtype = "float32"

    # What `tp_jax.prepare` reads, and writes as latents.
    config.prepare = ConfigDict()
    config.prepare.source = "tfds/imagenet2012"
    config.prepare.dir = ""
    config.prepare.split = "train"
    # So many images, chosen by the seed; 0 takes all.
    config.prepare.num = 0
    # Of an image's captions the first so many, if it has so many; 0 keeps all.
    config.prepare.captions = 0
    config.prepare.records_per_shard = 10_000
    config.prepare.batch_size = 64
    # Images that can't be read are named and left out, instead of ending the run.
    config.prepare.skip_corrupt = False

    config.data = ConfigDict()
    config.data.source = "digits"
    # Of the sources that read from disk; "" is the source's own default place.
    config.data.dir = ""
    config.data.split = "train"
    # Mirrors half the time, which belies captions that say left and right.
    config.data.flip = False
    # The next example takes the place of one that can't be read, instead of ending the run.
    config.data.skip_corrupt = False
    # Worker processes that decode and augment; 0 does it in threads of this process.
    config.data.workers = 0

    # Of data.source="frozenlake": its maps, and frames decoded from latent steps.
    config.frozenlake = ConfigDict(dataclasses.asdict(FrozenLakeConfig()))

    config.train = ConfigDict()
    config.train.steps = 400_000
    config.train.batch_size = 256
    config.train.trainable = "all"
    # Micro-batches whose gradients are averaged into one update.
    config.train.accumulate = 1
    # Keeps the average and the optimizer's state in the hosts' memory; an update fetches them.
    config.train.offload = False
    config.train.ema_decay = 0.9999
    # Share of the samples that are trained without their condition.
    config.train.condition_dropout = 0.1
    config.train.log_every = 100
    config.train.sample_every = 10_000
    config.train.samples = 64
    # A step that takes longer is reported, with where every thread is; 0 never looks.
    config.train.hang_seconds = 1_800.0

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    # Global gradient norm to clip to; 0 doesn't clip.
    config.optimizer.clip_norm = 0.0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 5_000
    config.checkpoint.keep = 2
    # Beside the newest, every step that is a multiple of this is kept; 0 keeps no others.
    config.checkpoint.keep_every_steps = 0

    # Scores of the averaged parameters during training; suite "" computes none. A suite that has
    # settings of its own reads them from the section with its name.
    config.evaluation = ConfigDict()
    config.evaluation.suite = ""
    config.evaluation.every_steps = 50_000
    # Samples drawn at once; doesn't change them.
    config.evaluation.batch_size = 64
    config.evaluation.adm = ConfigDict()
    # Number of images.
    config.evaluation.adm.num = 10_000
    # A file of statistics or images, and the folder of the converted Inception.
    config.evaluation.adm.reference = ""
    config.evaluation.adm.inception = ""
    config.evaluation.adm.protocol = "adm"
    config.evaluation.shapes = ConfigDict()
    # Number of prompts, the first of all 240; 0 takes all.
    config.evaluation.shapes.num = 0
    config.evaluation.frozenlake = ConfigDict()
    # Number of maps of each size.
    config.evaluation.frozenlake.num = 100
    # Draw every time from the true frame, instead of from the last drawn one.
    config.evaluation.frozenlake.look = False

    # Number of devices along each axis of the mesh; -1 takes the devices that are left.
    config.mesh = ConfigDict()
    # TPU slices, which only the data-centre network connects; 0 takes as many as there are.
    config.mesh.slices = 0
    # Each device along this axis holds a copy of the model.
    config.mesh.data = -1
    # Every weight is divided among the devices along this axis.
    config.mesh.fsdp = 1
    # Attention heads and MLPs are divided.
    config.mesh.tensor = 1
    # The experts are divided.
    config.mesh.expert = 1
    return config.lock()


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """The fields of a config as {"a.b": value}."""
    if not isinstance(node, ConfigDict):
        return {path: node}
    fields = {}
    for key, value in node.items():
        fields |= flat(value, f"{path}.{key}" if path else key)
    return fields


@dataclasses.dataclass(frozen=True)
class Built:
    """What a config describes, checked."""

    model: TransformerConfig
    objective: Objective
    sampler: SamplerConfig


def build(config: ConfigDict) -> Built:
    """Builds and checks everything that needs no device, data or file.

    Raises:
      UserError: a value out of range, or two that don't go together, naming the fields.
    """
    from tp_jax.diffusion.samplers import check_sampler

    _check_fields(config)
    objective = build_objective(config.diffusion)
    model = build_model_config(config.model, objective)
    sampler = SamplerConfig(**config.sampling.to_dict())
    check_sampler(sampler, objective)
    check_guidance(sampler, model)
    _check_train(config)
    FrozenLakeConfig(**config.frozenlake.to_dict())
    if model.condition_kind == "frame":
        check_decodable(model)
        if objective.prediction_type != "data":
            raise UserError(
                f"config.model.frame={config.model.frame!r}: what is drawn is added to the frame, "
                f"which only a flow that predicts data can do; set config.diffusion.kind='flow' "
                f"and .prediction='data'"
            )
    if config.train.trainable == "thinking":
        if not model.thinking.layers:
            raise UserError(
                'config.train.trainable="thinking" but config.model.thinking.layers is empty: '
                'name a layer, or train "all"'
            )
        if not config.init.base:
            raise UserError(
                'config.train.trainable="thinking" needs a base: set config.init.base to a base '
                'checkpoint or a workdir, or train "all"'
            )
    return Built(model, objective, sampler)


def check_guidance(sampler: SamplerConfig, model: TransformerConfig) -> None:
    """Raises a UserError if a model can't be guided so."""
    if not 0 <= sampler.guidance_channels <= model.channels:
        raise UserError(
            f"guidance_channels={sampler.guidance_channels}: the model has {model.channels}; "
            f"0 guides all"
        )
    if not math.isfinite(sampler.guidance_scale):
        raise UserError(f"guidance_scale={sampler.guidance_scale}: give a finite number")
    if sampler.guidance_scale != 1 and model.unconditional:
        raise UserError(
            f"guidance_scale={sampler.guidance_scale}: a model without classes has nothing to "
            f"guide; use 1"
        )


def model_config(config: ConfigDict) -> TransformerConfig:
    """The dataclass that `config.model` describes, with the output channels of its objective."""
    return build_model_config(config.model, build_objective(config.diffusion))


def build_objective(fields: ConfigDict) -> Objective:
    """The objective that `config.diffusion` describes."""
    values = fields.to_dict()
    _, build = OBJECTIVES[_choice("config.diffusion.kind", values.pop("kind"), OBJECTIVES)]
    return build(**values)


def build_model_config(fields: ConfigDict, objective: Objective) -> TransformerConfig:
    """The dataclass that `config.model` describes, with the objective's output channels."""
    values = fields.to_dict()
    config_class, _ = MODELS[_choice("config.model.kind", values.pop("kind"), MODELS)]
    thinking = ThinkingConfig(**values.pop("thinking"))
    out_channels = objective.out_channels(values["channels"])
    return config_class(**values, out_channels=out_channels, thinking=thinking)


def _choice(name: str, value: str | None, choices: Collection[str]) -> str:
    if value is None or value not in choices:
        listed = ", ".join(choice or "''" for choice in choices)
        raise UserError(f"{name}={value!r}: choose one of {listed}")
    return value


def _check_fields(config: ConfigDict) -> None:
    """A file may have unlocked its config, or changed a kind without the fields that go with it."""
    found = flat(config)
    model = _choice("config.model.kind", found.get("model.kind"), MODELS)
    diffusion = _choice("config.diffusion.kind", found.get("diffusion.kind"), OBJECTIVES)
    wanted = flat(default(model, diffusion))
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted:
            problem = "is unknown"
        elif found.get(name) is None:
            problem = "has no value"
        else:
            continue
        raise UserError(
            f"config.{name} {problem}: begin the config file with default({model!r}, "
            f"{diffusion!r}), and change its values alone"
        )


def _check_train(config: ConfigDict) -> None:
    _choice("config.train.trainable", config.train.trainable, TRAINABLE)
    _choice("config.optimizer.schedule", config.optimizer.schedule, SCHEDULES)
    _choice("config.text.null", config.text.null, ("empty", "zeros"))
    for section in ("autoencoder", "text"):
        _choice(f"config.{section}.dtype", config[section].dtype, ("float32", "bfloat16"))
    fields = flat(config)
    for least, names in LEAST.items():
        for name in names:
            if fields.get(name, least) < least:
                raise UserError(f"config.{name}={fields[name]}: must be {least} or more")
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"config.train.accumulate={config.train.accumulate} does not divide "
            f"config.train.batch_size={config.train.batch_size}: choose a divisor"
        )
    for field in ("ema_decay", "condition_dropout"):
        if not 0 <= config.train[field] < 1:
            raise UserError(f"config.train.{field}={config.train[field]}: must be in [0, 1)")
    if config.optimizer.warmup_steps >= config.train.steps and config.optimizer.warmup_steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be less than "
            f"config.train.steps={config.train.steps}"
        )
