"""Trained models on this machine's devices, ready to draw, and prompts as they take them."""

import dataclasses

import flax.linen as nn
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.latents.codec import Codec, Pooling, load_codec
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.models.parameters import Params, abstract_params
from tp_jax.parallel.mesh import DATA_PARALLEL, create_mesh
from tp_jax.parallel.sharding import tree_shardings, with_shardings
from tp_jax.workdir import checkpoints as checkpoint_lib
from tp_jax.workdir.record import read_config


@dataclasses.dataclass(frozen=True)
class ModelOnMesh:
    """A model on a mesh, with everything that drawing needs but parameters.

    Attributes:
      built: what the config describes.
      codec: decodes what the model draws; None where it draws pixels.
      workdir: that the model is or was trained in.
    """

    model: nn.Module
    built: config_lib.Built
    mesh: Mesh
    codec: Codec | Pooling | None
    config: ConfigDict
    workdir: epath.Path

    def with_params(self, params: Params, train_step: int) -> "Loaded":
        """The same with the parameters of a train_step."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(ModelOnMesh)
        }
        return Loaded(**fields, params=params, train_step=train_step)


@dataclasses.dataclass(frozen=True)
class Loaded(ModelOnMesh):
    """A trained model on this machine's devices, whatever it was trained on."""

    params: Params
    train_step: int


def load(
    workdir: epath.Path,
    train_step: int | None = None,
    *,
    ema: bool = True,
    dtype: str | None = None,
    autoencoder: str | None = None,
    text: str | None = None,
    truncate: bool = False,
) -> Loaded:
    """Loads a workdir, local or gs://, onto all devices here, data-parallel.

    Args:
      train_step: of the checkpoint; the newest by default.
      ema: averaged parameters, or those as trained.
      dtype: that the model computes in; the config's by default.
      autoencoder: folder of the autoencoder that decodes; the config's by default.
      text: folder of the text encoders; the config's by default.
      truncate: cut prompts that are longer than the encoder takes, and say so.

    Raises:
      UserError: there is no such workdir, checkpoint or autoencoder.
    """
    config = read_config(workdir)
    config.model.dtype = dtype or config.model.dtype
    config.autoencoder.path = autoencoder or config.autoencoder.path
    config.text.path = text or config.text.path
    config.text.truncate = truncate or config.text.truncate
    built = config_lib.build(config)
    model, mesh = build_model(built.model), create_mesh(DATA_PARALLEL)
    shapes = abstract_params(model)
    target = with_shardings(shapes, tree_shardings(shapes, mesh))
    codec = load_codec(config.autoencoder, mesh)
    if codec and codec.space.channels != built.model.channels:
        raise UserError(
            f"the autoencoder {config.autoencoder.path} has {codec.space.channels} channels, the "
            f"model {built.model.channels}: name the one that the model was trained with"
        )
    if config.data.source == "latents" and not codec:
        raise UserError(
            f"{workdir} was trained on latents: name the autoencoder that decodes them with "
            f"--autoencoder=DIR"
        )
    with checkpoint_lib.open_manager(workdir) as manager:
        train_step = checkpoint_lib.find_step(manager, train_step)
        params = checkpoint_lib.restore_params(manager, train_step, target, ema=ema)
    on_mesh = ModelOnMesh(model, built, mesh, codec, config, workdir)
    return on_mesh.with_params(params, train_step)


def without_thinking(loaded: Loaded, base: str | None = None) -> tuple[Loaded, str]:
    """The base model that a loaded one is to be compared with, and what it is.

    Args:
      base: base checkpoint or workdir; None is the base that the model was trained from, or,
        where all was trained from random weights, its own base weights without thinking.

    Raises:
      UserError: the base isn't there, or doesn't fit.
    """
    frozen = loaded.config.train.trainable == "thinking"
    path = base or ("" if frozen else loaded.config.init.base)
    model_config = dataclasses.replace(
        loaded.built.model, thinking=dataclasses.replace(loaded.built.model.thinking, layers=())
    )
    params = {"base": loaded.params["base"]}
    if path:
        shapes = abstract_params(build_model(model_config))
        target = with_shardings(shapes, tree_shardings(shapes, loaded.mesh))
        params = {"base": checkpoint_lib.load_base(path, target["base"], loaded.config.model)}
    built = dataclasses.replace(loaded.built, model=model_config)
    own = "the frozen base" if frozen else "the same weights, thinking off"
    changed = dataclasses.replace(loaded, model=build_model(model_config), params=params)
    return dataclasses.replace(changed, built=built), path or own
