"""All config fields with their defaults, their checks, and the objects that they describe.

The sections `model`, `model.thinking`, `diffusion`, `sampling`, `validation`, `shapes` and
`frozenlake` have the fields of a dataclass each, which documents and checks them: `DiTConfig` or
`MMDiTConfig`, `ThinkingConfig`, `GaussianConfig` or `FlowConfig`, `SamplerConfig`,
`ValidationConfig`, `ShapesConfig` and `FrozenLakeConfig`. A config is locked: setting a field that
doesn't exist is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

from ml_collections import ConfigDict

from tp_jax.diffusion import OBJECTIVES, SamplerConfig
from tp_jax.diffusion.validation_config import ValidationConfig
from tp_jax.messages.errors import UserError
from tp_jax.models import MODELS, TransformerConfig
from tp_jax.models.dit_config import check_frames
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.pictures.decoding import BACKGROUND, parse_colour
from tp_jax.thinking import ThinkingConfig
from tp_jax.values import Choice, annotations, checked
from tp_jax.values.config_fields import ALLOWED
from tp_jax.values.variants import parse_variants as parse_variants
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig
from tp_jax.worlds.shapes.settings import ShapesConfig

if TYPE_CHECKING:
    from tp_jax.diffusion.objective import Objective


def default(model: str = "dit", diffusion: str = "gaussian") -> ConfigDict:
    """Return a locked config with all fields at their defaults.

    Args:
      model: a key of `MODELS`.
      diffusion: a key of `OBJECTIVES`.

    Example:
      >>> config = default(model="dit", diffusion="flow")
      >>> config.model.thinking.latent_steps
      2
      >>> config.train.stepz = 3
      Traceback (most recent call last):
      AttributeError: ...
    """
    config = ConfigDict()
    config.seed = 0

    config.init = ConfigDict()
    # A converted checkpoint, or a workdir, whose EMA parameters become the base; "" starts from
    # random weights.
    config.init.base = ""

    config_class, _ = MODELS[model]
    fields = dataclasses.asdict(config_class())
    # The objective determines the output channels.
    del fields["out_channels"]
    config.model = ConfigDict({"kind": model} | fields)
    objective_class, _ = OBJECTIVES[diffusion]
    fields = dataclasses.asdict(objective_class())
    config.diffusion = ConfigDict({"kind": diffusion} | fields)
    config.sampling = ConfigDict(dataclasses.asdict(SamplerConfig()))
    config.sampling.sampler = objective_class.default_sampler

    config.autoencoder = ConfigDict()
    # A folder from `tp_jax.convert --kind=sd-vae`; "" trains on the data of the source as they are.
    config.autoencoder.path = ""
    # Without an autoencoder: latents are the means of squares of pixels with this side, and
    # decoding enlarges them. 0 turns this off.
    config.autoencoder.pool = 0
    config.autoencoder.dtype = "float32"
    # Side in pixels of the overlapping tiles that large images are encoded and decoded in; 0 uses
    # no tiles.
    config.autoencoder.tile = 0

    # For models that are conditioned on text. "shapes" encodes the words of `tp_jax.worlds.shapes`;
    # "sd3" is CLIP and T5 from `path`, a folder with the layout of Stable Diffusion 3 in diffusers.
    config.text = ConfigDict()
    config.text.encoder = "sd3"
    config.text.path = ""
    # Without T5, the embeddings of its tokens are zeros, as in SD3.
    config.text.t5 = True
    config.text.clip_tokens = 77
    config.text.t5_tokens = 77
    # The null condition of dropout and guidance: "empty" is the embedding of the empty prompt,
    # "zeros" an embedding of zeros.
    config.text.null = "empty"
    # Cut prompts that are too long, with a warning, instead of refusing them.
    config.text.truncate = False
    config.text.dtype = "float32"

    # The data that `tp_jax.prepare` encodes.
    config.prepare = ConfigDict()
    config.prepare.source = "tfds/imagenet2012"
    config.prepare.dir = ""
    config.prepare.split = "train"
    config.prepare.columns = ()
    # Number of images, chosen at random with the seed; 0 takes all.
    config.prepare.num = 0
    # Number of captions of each image, from its first; 0 keeps all.
    config.prepare.captions = 0
    config.prepare.records_per_shard = 10_000
    config.prepare.batch_size = 64
    # Skip images that can't be read, and name them, instead of stopping.
    config.prepare.skip_corrupt = False

    config.data = ConfigDict()
    config.data.source = "digits"
    # Folder of the sources that read files; "" is the default folder of the source.
    config.data.dir = ""
    config.data.split = "train"
    # For "datasets": the columns of images and of labels or captions; () takes the usual names.
    config.data.columns = ()
    # Mirror images at random. Captions with "left" and "right" become wrong.
    config.data.flip = False
    # The colour behind transparent pixels, also for `tp_jax.prepare`: a name or "#rrggbb".
    config.data.background = BACKGROUND
    # Replace an example that can't be read by the next one, instead of stopping.
    config.data.skip_corrupt = False
    # Worker processes that decode and augment; 0 uses threads of this process.
    config.data.workers = 0

    config.validation = ConfigDict(dataclasses.asdict(ValidationConfig()))

    # For data.source="shapes": what the scenes and prompts may contain.
    config.shapes = ConfigDict(dataclasses.asdict(ShapesConfig()))
    # For data.source="frozenlake": the maps, and the frames decoded from latent steps.
    config.frozenlake = ConfigDict(dataclasses.asdict(FrozenLakeConfig()))

    config.train = ConfigDict()
    config.train.steps = 400_000
    config.train.batch_size = 256
    config.train.trainable = "all"
    # Number of micro-batches whose gradients are averaged for one update.
    config.train.accumulate = 1
    # Keep the EMA and the optimizer state in host memory; each update copies them to the device.
    config.train.offload = False
    # On GPUs, use only kernels that give the same bits in every run; elsewhere all of them do.
    config.train.deterministic = False
    config.train.ema_decay = 0.9999
    # Weight of the loss of the latent steps before the last, each of which the rest of the model
    # reads as a prediction of the same target; 0 turns this off.
    config.train.deep_supervision = 0.0
    # Probability that a training example is used with the null condition.
    config.train.condition_dropout = 0.1
    config.train.log_every = 100
    config.train.sample_every = 10_000
    config.train.samples = 64
    # If a train step takes longer than this, print the stack of every thread; 0 turns this off.
    config.train.hang_seconds = 1_800.0

    # Curves and sample grids go to any of tensorboard, wandb and trackio; these have projects.
    config.log = ConfigDict({"writers": ("tensorboard",), "project": "tp_jax"})

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    # Maximum global gradient norm; 0 doesn't clip.
    config.optimizer.clip_norm = 0.0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 5_000
    config.checkpoint.keep = 2
    # In addition to the newest `keep` checkpoints, keep those of every multiple of this train
    # step; 0 keeps no others.
    config.checkpoint.keep_every_steps = 0

    # Each suite reads its settings from the section with its name.
    config.evaluation = ConfigDict()
    config.evaluation.suite = ""
    config.evaluation.every_steps = 50_000
    # Samples per batch; doesn't change the samples.
    config.evaluation.batch_size = 64
    config.evaluation.adm = ConfigDict()
    # Number of images.
    config.evaluation.adm.num = 10_000
    # A file with statistics or images, and a folder written by `tp_jax.convert --kind=inception`.
    config.evaluation.adm.reference = ""
    config.evaluation.adm.inception = ""
    config.evaluation.adm.protocol = "adm"
    config.evaluation.shapes = ConfigDict()
    # Number of prompts, from the first of 240; 0 takes all.
    config.evaluation.shapes.num = 0
    config.evaluation.frozenlake = ConfigDict()
    # Number of maps per size.
    config.evaluation.frozenlake.num = 100
    # Start each sample from the true frame, instead of from the last generated frame.
    config.evaluation.frozenlake.look = False
    config.evaluation.digits = ConfigDict()
    # Number of images, of all classes in turn.
    config.evaluation.digits.num = 1_000

    # Number of devices along each axis of the mesh. `data` copies the model, `fsdp` divides every
    # weight, `tensor` attention heads and MLPs, `expert` the experts, and `slices` are TPU slices
    # that only the data-centre network connects.
    config.mesh = ConfigDict(DATA_PARALLEL)
    return config.lock()


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Return the fields of a config as {"a.b": value}."""
    if not isinstance(node, ConfigDict):
        return {path: node}
    fields = {}
    for key, value in node.items():
        fields |= flat(value, f"{path}.{key}" if path else key)
    return fields


@dataclasses.dataclass(frozen=True)
class Built:
    """The checked objects that a config describes."""

    model: TransformerConfig
    objective: Objective
    sampler: SamplerConfig


def build(config: ConfigDict) -> Built:
    """Build and check everything that needs no device, data or file.

    The ~ and $NAME of paths are expanded in place.

    Raises:
      UserError: a value is out of range, or two values contradict each other.
    """
    from tp_jax.diffusion.samplers import check_sampler

    _check_fields(config)
    objective = build_objective(config.diffusion)
    model = build_model_config(config.model, objective)
    sampler = SamplerConfig(**config.sampling.to_dict())
    check_sampler(sampler, objective)
    check_guidance(sampler, model)
    _check_train(config)
    if config.train.condition_dropout and not model.has_null:
        raise UserError(
            f"config.train.condition_dropout={config.train.condition_dropout} needs the null "
            f"class, but config.model.null_class=False: set it to 0"
        )
    ShapesConfig(**config.shapes.to_dict())
    FrozenLakeConfig(**config.frozenlake.to_dict())
    if model.condition_kind == "frame":
        check_frames(model)
        if objective.prediction_type != "data":
            raise UserError(
                f"config.model.frame={config.model.frame!r}: the output is added to the frame, so "
                f"it needs a flow that predicts data: set config.diffusion.kind='flow' and "
                f"config.diffusion.prediction='data'"
            )
    _check_supervision(config, model)
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


def _check_supervision(config: ConfigDict, model: TransformerConfig) -> None:
    """Raise a UserError if `config.train.deep_supervision` has no latent step to train."""
    name = f"config.train.deep_supervision={config.train.deep_supervision}"
    if not config.train.deep_supervision:
        return
    if model.condition_kind == "frame":
        raise UserError(
            f"{name}: config.model.frame={config.model.frame!r} trains every latent step on a "
            f"frame of its own, with config.frozenlake.frames_weight: set it to 0"
        )
    if model.thinking.halting == "ponder":
        raise UserError(
            f"{name} trains every latent step of every token, but with config.model.thinking."
            f"halting='ponder' tokens halt before: set one of them to 0 or 'none'"
        )
    if not model.thinking.layers or model.trained_latent_steps[-1] == 1:
        raise UserError(
            f"{name} trains the latent steps before the last, and there are none: set "
            f"config.model.thinking.layers and 2 or more config.model.thinking.latent_steps, or 0"
        )


def check_guidance(sampler: SamplerConfig, model: TransformerConfig) -> None:
    """Raise a UserError if the guidance doesn't fit the model."""
    if sampler.guidance_channels > model.channels:
        raise UserError(
            f"guidance_channels={sampler.guidance_channels}: the model has {model.channels} "
            f"channels; 0 guides all"
        )
    if sampler.guidance_scale != 1 and model.unconditional:
        raise UserError(
            f"guidance_scale={sampler.guidance_scale}: guidance needs classes or text, and this "
            f"model has no classes: use 1"
        )
    if sampler.guidance_scale != 1 and not model.has_null:
        raise UserError(
            f"guidance_scale={sampler.guidance_scale}: guidance needs the null class, which a "
            f"model with config.model.null_class=False lacks: use 1"
        )


def model_config(config: ConfigDict) -> TransformerConfig:
    """Return the model config of a whole config."""
    return build_model_config(config.model, build_objective(config.diffusion))


def build_objective(fields: ConfigDict) -> Objective:
    """Return the objective that `config.diffusion` describes."""
    values = fields.to_dict()
    _, build = OBJECTIVES[_choice("config.diffusion.kind", values.pop("kind"), OBJECTIVES)]
    return build(**values)


def build_model_config(fields: ConfigDict, objective: Objective) -> TransformerConfig:
    """Return the model config of `config.model`, with the output channels of the objective."""
    values = fields.to_dict()
    config_class, _ = MODELS[_choice("config.model.kind", values.pop("kind"), MODELS)]
    thinking = ThinkingConfig(**values.pop("thinking"))
    out_channels = objective.out_channels(values["channels"])
    return config_class(**values, out_channels=out_channels, thinking=thinking)


def _choice(name: str, value: str | None, choices: Collection[str]) -> str:
    return checked(name, value, Annotated[str, Choice(*choices)])


def allowed_values(model: str, diffusion: str) -> dict[str, Any]:
    """Return the type annotation of each field, which says what `values.checked` allows.

    Args:
      model, diffusion: as for `default`.
    """
    found = {name: type(value) for name, value in flat(default(model, diffusion)).items()}
    found |= {name: annotation for annotation, names in ALLOWED.items() for name in names}
    sections = {
        "model": MODELS[model][0],
        "model.thinking": ThinkingConfig,
        "diffusion": OBJECTIVES[diffusion][0],
        "sampling": SamplerConfig,
        "validation": ValidationConfig,
        "shapes": ShapesConfig,
        "frozenlake": FrozenLakeConfig,
    }
    for section, config_class in sections.items():
        fields = annotations(config_class).items()
        found |= {f"{section}.{name}": a for name, a in fields if f"{section}.{name}" in found}
    return found


def _check_fields(config: ConfigDict) -> None:
    """Check names and values of the fields, since a config file may have unlocked its config."""
    found = flat(config)
    model = _choice("config.model.kind", found.get("model.kind"), MODELS)
    diffusion = _choice("config.diffusion.kind", found.get("diffusion.kind"), OBJECTIVES)
    wanted = allowed_values(model, diffusion)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted:
            problem = "is unknown"
        elif found.get(name) is None:
            problem = "has no value"
        else:
            continue
        raise UserError(
            f"config.{name} {problem}: start the config file with default({model!r}, "
            f"{diffusion!r}), and change only values"
        )
    for name, annotation in wanted.items():
        value = checked(f"config.{name}", found[name], annotation)
        if value != found[name]:
            config.update_from_flattened_dict({name: value})


def _check_train(config: ConfigDict) -> None:
    parse_colour("config.data.background", config.data.background)
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"config.train.accumulate={config.train.accumulate} does not divide "
            f"config.train.batch_size={config.train.batch_size}: choose a divisor"
        )
    if config.optimizer.warmup_steps >= config.train.steps and config.optimizer.warmup_steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be less than "
            f"config.train.steps={config.train.steps}"
        )
