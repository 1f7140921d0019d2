"""Load the trained model of a workdir onto the devices of this machine."""

import dataclasses
import os

import flax.linen as nn
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.files.hub import local
from tp_jax.latents.codec import Codec, Pooling, load_codec
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.models.parameters import Params, abstract_params
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import create_mesh
from tp_jax.parallel.sharding import tree_shardings, with_shardings
from tp_jax.values import checked
from tp_jax.values.kinds import Source
from tp_jax.workdir import checkpoints as checkpoint_lib
from tp_jax.workdir.exported import is_exported, restore_exported
from tp_jax.workdir.record import read_config


@dataclasses.dataclass(frozen=True)
class ModelOnMesh:
    """A model on a mesh, with everything that sampling needs except the parameters.

    Attributes:
      model: the DiT or MMDiT.
      built: the objects that the config describes.
      mesh: the mesh that the model runs on.
      codec: decodes latents into images; None if the model generates pixels.
      config: the config that the model was trained with.
      workdir: the folder that the model is or was trained in.
    """

    model: nn.Module
    built: config_lib.Built
    mesh: Mesh
    codec: Codec | Pooling | None
    config: ConfigDict
    workdir: epath.Path

    def with_params(self, params: Params, train_step: int) -> "Loaded":
        """Return the same model with the parameters of a train step."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(ModelOnMesh)
        }
        return Loaded(**fields, params=params, train_step=train_step)


@dataclasses.dataclass(frozen=True)
class Loaded(ModelOnMesh):
    """A trained model on this machine's devices, which may differ from those of training.

    Attributes:
      params: the parameters, sharded over the mesh.
      train_step: the train step of the checkpoint.
    """

    params: Params
    train_step: int


def load(
    workdir: str | os.PathLike[str],
    train_step: int | None = None,
    *,
    ema: bool = True,
    dtype: str | None = None,
    autoencoder: str | None = None,
    text: str | None = None,
    truncate: bool = False,
    allow_unchecked: bool = False,
) -> Loaded:
    """Load the model of a workdir onto all devices of this machine, data-parallel.

    Args:
      workdir: a local folder, or a gs:// or hf:// path; a leading ~ is the home folder.
      train_step: train step of the checkpoint; by default that of the newest one.
      ema: load the moving average of the parameters; if False, the parameters themselves.
      dtype: compute dtype of the model, "float32" or "bfloat16"; by default the config's.
      autoencoder: folder of the autoencoder that decodes the latents; by default the config's.
      text: folder of the text encoders; by default the config's.
      truncate: cut prompts that are too long for the encoder, with a warning.
      allow_unchecked: accept a checkpoint whose checksums are missing or damaged.

    Raises:
      UserError: the workdir, the checkpoint or the autoencoder doesn't exist or doesn't fit.
    """
    workdir = local(checked("workdir", os.fspath(workdir), Source))
    autoencoder = checked("autoencoder", autoencoder or "", Source)
    text = checked("text", text or "", Source)
    config = read_config(workdir)
    config.model.dtype = dtype or config.model.dtype
    config.autoencoder.path = autoencoder or config.autoencoder.path
    config.text.path = text or config.text.path
    config.text.truncate = truncate or config.text.truncate
    built = config_lib.build(config)
    model, mesh = build_model(built.model), create_mesh(DATA_PARALLEL)
    codec = load_codec(config.autoencoder, mesh)
    if codec and codec.space.channels != built.model.channels:
        raise UserError(
            f"the autoencoder {config.autoencoder.path} has {codec.space.channels} latent "
            f"channels, but the model has {built.model.channels}: give the autoencoder that the "
            f"model was trained with"
        )
    if config.data.source == "latents" and not codec:
        raise UserError(
            f"{workdir} was trained on latents: give the autoencoder that decodes them with "
            f"--autoencoder=DIR"
        )
    train_step, params = restore(
        workdir, config, model, train_step, ema=ema, allow_unchecked=allow_unchecked
    )
    on_mesh = ModelOnMesh(model, built, mesh, codec, config, workdir)
    return on_mesh.with_params(params, train_step)


def restore(
    workdir: epath.Path,
    config: ConfigDict,
    model: nn.Module,
    train_step: int | None = None,
    *,
    ema: bool = True,
    allow_unchecked: bool = False,
) -> tuple[int, Params]:
    """Restore the parameters of a workdir or an exported model onto all devices, data-parallel.

    Args:
      workdir: the folder.
      config: its config.
      model: the model of the config.
      train_step, ema, allow_unchecked: as for `load`.

    Returns:
      The train step, and {"base", "thinking"}.

    Raises:
      UserError: they can't be restored.
    """
    shapes = abstract_params(model)
    target = with_shardings(shapes, tree_shardings(shapes, create_mesh(DATA_PARALLEL)))
    if is_exported(workdir):
        return restore_exported(
            workdir, target, config.init.base, config.model,
            checkpoint=train_step, ema=ema, allow_unchecked=allow_unchecked,
        )  # fmt: skip
    with checkpoint_lib.open_manager(workdir) as manager:
        train_step = checkpoint_lib.find_step(manager, train_step, allow_unchecked=allow_unchecked)
        return train_step, checkpoint_lib.restore_params(manager, train_step, target, ema=ema)


def without_thinking(
    loaded: Loaded, base: str | None = None, *, allow_unchecked: bool = False
) -> tuple[Loaded, str]:
    """Load the base model, without thinking layers, that a model is compared with.

    Args:
      loaded: the model.
      base: base checkpoint or workdir; by default the base that the model was trained from, or,
        if the base was trained from random weights, the model's own base weights.
      allow_unchecked: accept a base whose checksums are missing or damaged.

    Returns:
      The base model, and a description of where its weights come from.

    Raises:
      UserError: the base doesn't exist or doesn't fit the model.
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
        load = checkpoint_lib.load_base
        params = {
            "base": load(path, target["base"], loaded.config.model, allow_unchecked=allow_unchecked)
        }
    built = dataclasses.replace(loaded.built, model=model_config)
    own = "the frozen base" if frozen else "the same weights, thinking off"
    changed = dataclasses.replace(loaded, model=build_model(model_config), params=params)
    return dataclasses.replace(changed, built=built), path or own
