"""The three phases before the first train step: check, build, and restore or initialize."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import grain
import jax
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.diffusion.objective import Objective
from tp_jax.evals.suite import EvaluateInTraining
from tp_jax.evals.validation.losses import Validation
from tp_jax.evals.validation.suite import make_validation
from tp_jax.files.differences import Difference
from tp_jax.files.hub import local
from tp_jax.latents.codec import load_codec
from tp_jax.messages.progress import say
from tp_jax.models import build_model
from tp_jax.models.attention import check_attention
from tp_jax.models.parameters import Params, init_params
from tp_jax.parallel.mesh import check_batch_size, create_mesh
from tp_jax.parallel.sharding import with_shardings
from tp_jax.sampling.generator import choose_labels
from tp_jax.sampling.loaded import ModelOnMesh
from tp_jax.text import TextSpace
from tp_jax.train.checkpoint import Checkpoints
from tp_jax.train.loss import make_gradient
from tp_jax.train.optimizer import make_optimizer
from tp_jax.train.periodic import open_evaluation
from tp_jax.train.state import TrainState, abstract_state, make_state
from tp_jax.train.step import JittedStep, jit_train_step
from tp_jax.train.trackers import check_writers
from tp_jax.workdir.changes import (
    Facts,
    changed_facts,
    check_allowed,
    check_changes,
    identify_latents,
)
from tp_jax.workdir.checkpoints import FOLDER, load_base
from tp_jax.workdir.record import check_text_space, check_workdir


@dataclasses.dataclass(frozen=True)
class Checked:
    """The parts of a run, after all checks that can raise a UserError about config or data.

    Attributes:
      model: the model, its config, mesh and codec.
      changes: the config fields and facts that changed since the last start in this workdir.
      facts: what is known about the data, and must stay the same.
      images: number of records of the data source.
      held_out: how many of them training leaves out, for validation.
      class_names: names of the classes of the data source, if it has classes.
      text_space: identifies the text encoder; None if the data have no text.
      conditions: conditions of the sample grids, a tree of arrays [num, …].
      iterator: batches {"x", "condition", …}, this process's part of each.
      encode: encodes a batch of pixels into latents; None if the batches are ready for the model.
      evaluate: scores the EMA parameters; None if no evaluation is configured.
      validation: computes their loss on examples that training doesn't read; None if
        `config.validation.every_steps` is 0.
    """

    model: ModelOnMesh
    changes: list[Difference]
    facts: Facts
    images: int
    held_out: int
    class_names: tuple[str, ...]
    text_space: TextSpace | None
    conditions: Any
    iterator: grain.DatasetIterator
    encode: Callable[..., jax.Array] | None
    evaluate: EvaluateInTraining | None
    validation: Validation | None

    @property
    def config(self) -> ConfigDict:
        """The whole config."""
        return self.model.config


def check(config: ConfigDict, workdir: epath.Path, allow_change: Collection[str] = ()) -> Checked:
    """Check config, workdir, data and evaluation, and open the data and the autoencoder.

    Args:
      config: the config of the run.
      workdir: the folder of the run.
      allow_change: fields and sections of the config, and facts, that may change when it resumes.

    Raises:
      UserError: one of them is wrong. Nothing has been written.
    """
    built = config_lib.build(config)
    check_writers(config)
    mesh = create_mesh(config.mesh)
    check_batches(config, mesh)
    check_attention(built.model, mesh)
    allowed = check_allowed(allow_change, config)
    changes = check_workdir(workdir, config, allowed)
    codec = load_codec(config.autoencoder, mesh, config.train.deterministic)
    space = codec.space if codec else None
    source = data.open_source(config, space)
    encoder = data.open_text(source, config)
    text_space = encoder.space if encoder else source.text_space
    if "text" not in allowed:
        check_text_space(workdir, text_space)
    facts = Facts(
        source.class_names,
        len(source.records),
        space and space.identity,
        identify_latents(source.identity),
    )
    changed = changed_facts(workdir, facts)
    check_changes(workdir, changed, allowed)
    if config.init.base:
        check_text_space(local(config.init.base), text_space, "config.init.base")
    iterator = data.make_iterator(source, config, space, encoder)
    model = ModelOnMesh(build_model(built.model), built, mesh, codec, config, workdir)
    return Checked(
        model=model,
        changes=[*changes, *changed],
        facts=facts,
        images=len(source.records),
        held_out=len(source.records) - len(data.training_part(source, config)),
        class_names=source.class_names,
        text_space=text_space,
        conditions=_picture_conditions(model, source, encoder),
        iterator=iterator,
        encode=codec.encode if codec and data.encodes_on_the_fly(source, space) else None,
        evaluate=open_evaluation(model),
        validation=_open_validation(model, source, encoder),
    )


def _open_validation(model: ModelOnMesh, source: data.Source, encoder: Any) -> Validation | None:
    if not model.config.validation.every_steps:
        return None
    space = model.codec.space if model.codec else None
    return make_validation(model, data.open_validation(source, model.config, space, encoder))


def check_batches(config: ConfigDict, mesh: Mesh) -> None:
    """Raise a UserError unless the batch and the micro-batches divide evenly over the mesh."""
    check_batch_size(mesh, "config.train.batch_size", config.train.batch_size)
    micro_batch = config.train.batch_size // config.train.accumulate
    check_batch_size(mesh, "config.train.batch_size / accumulate", micro_batch)


def _picture_conditions(model: ModelOnMesh, source: data.Source, encoder: Any) -> Any:
    """Return conditions for the sample grid: all classes in turn, or those of the first records."""
    num = model.config.train.samples
    if not num:
        return {}
    if model.built.model.condition_kind == "label":
        return {"label": choose_labels((), num, model.built.model.classes)}
    return data.example_conditions(source, encoder, num)


@dataclasses.dataclass(frozen=True)
class Program:
    """The jitted train step and the layout of its state.

    Attributes:
      optimizer: the optimizer.
      abstract: shapes and dtypes of the state.
      shardings: the sharding of each leaf of the state.
      step: the jitted train step, which donates the state.
    """

    optimizer: optax.GradientTransformation
    abstract: TrainState
    shardings: TrainState
    step: JittedStep


def build(config: ConfigDict, model: nn.Module, objective: Objective, mesh: Mesh) -> Program:
    """Build the train step of a model on a mesh. It compiles when it is first called."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    abstract, shardings = abstract_state(
        model, optimizer, config.train.trainable, mesh, config.train.offload
    )
    gradient = make_gradient(model, objective, config)
    step = jit_train_step(gradient, optimizer, config, mesh, shardings)
    return Program(optimizer, abstract, shardings, step)


@dataclasses.dataclass
class Start:
    """Where a run starts or resumes.

    Attributes:
      checkpoints: the workdir's checkpoints; None if their folder doesn't exist yet.
      first: train step of the restored checkpoint, or 0.
      seconds: seconds of training before this start.
    """

    checkpoints: Checkpoints | None
    first: int
    seconds: float
    _state: TrainState | None

    def take_state(self) -> TrainState:
        """Return the state and drop the reference to it. Call it once.

        The train step donates the state, so no other reference may keep its buffers in use.
        """
        state, self._state = self._state, None
        if state is None:
            raise RuntimeError("take_state was called twice")
        return state


def restore(checked: Checked, program: Program, *, allow_unchecked: bool = False) -> Start | None:
    """Restore the newest undamaged checkpoint, or make an initial state.

    Args:
      checked: the checked parts of the run.
      program: the train step and the layout of its state.
      allow_unchecked: use checkpoints, also of the base, whose checksums are missing or damaged.

    Returns:
      Where the run starts; None if it has reached `config.train.steps` already.

    Raises:
      UserError: the base doesn't fit the model, or all checkpoints are damaged.
    """
    model, config = checked.model, checked.config
    workdir, steps = model.workdir, config.train.steps
    checkpoints = None
    # Opening creates the folder, so open it only if it exists. In a new run `train` creates it
    # after all checks have passed and the config is written.
    if (workdir / FOLDER).exists():
        checkpoints = Checkpoints(workdir, config.checkpoint)
        newest = max(checkpoints.steps(), default=0)
        if newest >= steps:
            say(
                f"{workdir} is trained already: {newest} of {steps} steps; raise config.train.steps"
            )
            checkpoints.close()
            return None
        target = with_shardings(program.abstract, program.shardings)
        restored = checkpoints.restore_newest(target, allow_unchecked=allow_unchecked)
        if restored:
            state, progress = restored
            checked.iterator.set_state(progress.data)
            first = int(jax.device_get(state.train_step))
            return Start(checkpoints, first, progress.seconds, state)
    state = _fresh_state(model, program, allow_unchecked)
    return Start(checkpoints, 0, 0.0, state)


def _fresh_state(model: ModelOnMesh, program: Program, allow_unchecked: bool) -> TrainState:
    config, shardings = model.config, program.shardings.params
    init = jax.jit(lambda: init_params(model.model, config.seed), out_shardings=shardings)
    params: Params = init()
    if config.init.base:
        target = with_shardings(program.abstract.params["base"], shardings["base"])
        params["base"] = load_base(
            config.init.base, target, config.model, allow_unchecked=allow_unchecked
        )
    make = jax.jit(
        lambda params: make_state(params, program.optimizer, config.train.trainable),
        out_shardings=program.shardings,
    )
    return make(params)
