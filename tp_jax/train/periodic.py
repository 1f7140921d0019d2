"""Periodic actions of the training loop: log, save, sample grid, evaluation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
import optax
from etils import epath

from tp_jax.data import SEEN
from tp_jax.evals import find_suite
from tp_jax.evals.suite import EvaluateInTraining
from tp_jax.evals.validation.losses import Validation
from tp_jax.evals.validation.suite import as_json, validate
from tp_jax.files.atomic import Dispensable, write_json
from tp_jax.messages.errors import NotFiniteError
from tp_jax.messages.progress import say
from tp_jax.models.parameters import Params
from tp_jax.parallel.mesh import padded_batch_size
from tp_jax.pictures.galleries import make_class_grid
from tp_jax.pictures.grids import make_grid, save_png, to_uint8
from tp_jax.pictures.maps import routing_maps
from tp_jax.sampling.draw import GRID_SIDE
from tp_jax.sampling.loaded import ModelOnMesh
from tp_jax.sampling.request import make_generator
from tp_jax.train import metrics
from tp_jax.train.checkpoint import Checkpoints, Progress
from tp_jax.train.state import TrainState
from tp_jax.workdir.changes import read_class_names

# The titles of the columns are printed again after this many reports.
HEADER_EVERY = 25
# Images whose routing TensorBoard shows.
MAPPED = 8


@dataclasses.dataclass(frozen=True)
class Every:
    """A schedule: due every `steps` train steps, and after the last one.

    Attributes:
      steps: the interval in train steps.
      last: the last train step of the run.
    """

    steps: int
    last: int

    def __call__(self, train_step: int) -> bool:
        """Return whether the action is due after this train step."""
        return train_step % self.steps == 0 or train_step == self.last


class ResumableData(Protocol):
    """The part of the data iterator that `Save` uses."""

    def get_state(self) -> dict[str, Any]:
        """Return the position in the data, as JSON."""
        ...


@dataclasses.dataclass(frozen=True)
class Log:
    """Writes the means since the last log line to TensorBoard and to the terminal."""

    due: Every
    window: metrics.Window
    schedule: optax.Schedule
    writer: metrics.Writer

    def run(self, train_step: int) -> None:
        """Close the window of metrics, and log its means."""
        means = self.window.close()
        # The optimizer counts its updates from 0.
        rate = {"learning_rate": float(jax.jit(self.schedule)(train_step - 1))}
        self.writer.write_scalars(train_step, metrics.scalars(means) | rate)
        say(metrics.line(train_step, self.due.last, means))
        if train_step // self.due.steps % HEADER_EVERY == 0 and train_step < self.due.last:
            say(metrics.header())


@dataclasses.dataclass(frozen=True)
class Save:
    """Saves a checkpoint from which the run can resume."""

    due: Every
    window: metrics.Window
    checkpoints: Checkpoints
    data: ResumableData

    def run(self, state: TrainState) -> None:
        """Save, after checking that all losses and gradients since the last log are finite.

        Raises:
          TrainingError: one of them isn't finite, or the files can't be written.
        """
        self.window.check_finite()
        with self.window.paused():
            progress = Progress(self.data.get_state(), self.window.seconds)
            self.checkpoints.save(state, progress)


class EmaAction(Protocol):
    """A long action on the EMA parameters; the clock and the watchdog are paused while it runs."""

    @property
    def due(self) -> Every:
        """The schedule."""
        ...

    def run(self, train_step: int, params: Params) -> None:
        """Run the action after a train step, with the EMA parameters."""
        ...


class SampleGrid:
    """Samples a grid of images with the EMA parameters, always from the same noise.

    If the model has several experts, maps show which of them the tokens of the first images took.
    """

    def __init__(
        self, due: Every, model: ModelOnMesh, conditions: Any, writer: metrics.Writer
    ) -> None:
        """Make a generator for `config.train.samples` images.

        Args:
          due: the schedule.
          model: the model.
          conditions: a tree of arrays [config.train.samples, …], one condition per image.
          writer: writes the grid and the maps to TensorBoard.
        """
        self.due, count = due, model.config.train.samples
        self._generator = make_generator(model, batch_size=padded_batch_size(model.mesh, count))
        self._conditions, self._model, self._writer = conditions, model, writer
        self._dispensable = Dispensable()

    def run(self, train_step: int, params: Params) -> None:
        """Sample, and write the grid to `samples/<train_step>.png` and to TensorBoard."""
        try:
            images, maps = self._sample(params)
        except NotFiniteError as error:
            say(f"warning: no picture of the samples of step {train_step}: {error}")
            return
        if self._model.built.model.classes > 1 and images.shape[-1] in (1, 3):
            labels = np.asarray(self._conditions["label"]).tolist()
            grid = make_class_grid(images, labels, read_class_names(self._model.workdir))
        else:
            grid = make_grid(images, min_side=GRID_SIDE)
        if jax.process_index() == 0:
            path = self._model.workdir / "samples" / f"{train_step:08d}.png"
            with self._dispensable.writing("sample grids"):
                save_png(path, grid)
                say(f"samples of step {train_step}: {path}")
            shown = grid if grid.shape[-1] in (1, 3) else grid[..., :3]
            self._writer.write_images(train_step, {"samples": shown} | maps)

    def _sample(self, params: Params) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the images, uint8 [B, H, W, C], and a picture of the routing of each block."""
        generator, thinking = self._generator, self._model.built.model.thinking
        seed = self._model.config.seed
        if not thinking.layers or thinking.experts == 1:
            batches = generator.batches(params, self._conditions, seed)
            return to_uint8(np.concatenate(list(batches))), {}
        # There is one batch, because `make_generator` was given the number of images.
        ((floats, (timesteps, experts)),) = generator.traces(
            params, self._conditions, seed, draw=self._draw_and_observe
        )
        images = to_uint8(floats)
        return images, {
            f"expert_maps/layer_{block}": routing_maps(
                images[:MAPPED],
                chosen[:, :, :MAPPED],
                timesteps,
                generator.grid,
                thinking.experts,
            )
            for block, chosen in experts.items()
        }

    def _draw_and_observe(self, params: Any, key: Any, index: Any, condition: Any) -> Any:
        """Sample, and observe the chosen experts alone: probabilities could fill the memory."""
        return self._generator.draw_and_observe(
            params,
            key,
            index,
            condition,
            lambda found, _: {block: stats.expert for block, stats in found.items()},
        )


def open_evaluation(model: ModelOnMesh) -> EvaluateInTraining | None:
    """Open the suite that `config.evaluation` names.

    Returns:
      A function that scores parameters; None if no suite is configured.

    Raises:
      UserError: the suite is unknown, or its settings don't fit the model.
    """
    name = model.config.evaluation.suite
    return find_suite(name, "config.evaluation.suite").load().in_training(model) if name else None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores the EMA parameters with a suite, always from the same noise."""

    due: Every
    model: ModelOnMesh
    evaluate: EvaluateInTraining
    writer: metrics.Writer
    dispensable: Dispensable = dataclasses.field(default_factory=Dispensable)

    def run(self, train_step: int, params: Params) -> None:
        """Score, and write the results to `evaluations/<train_step>.json` and TensorBoard."""
        folder = self.model.workdir / "evaluations"
        loaded = self.model.with_params(params, train_step)
        fields: Mapping[str, Any] = {}
        try:
            with self.dispensable.writing("scores"):
                fields = self.evaluate(loaded, folder / f"{train_step:08d}")
        except NotFiniteError as error:
            say(f"warning: no evaluation of step {train_step}: {error}")
        numbers = {f"evaluation/{k}": v for k, v in fields.items() if isinstance(v, float)}
        self.writer.write_scalars(train_step, numbers)
        if jax.process_index() == 0 and fields:
            with self.dispensable.writing("files of scores"):
                write_json(folder / f"{train_step:08d}.json", dict(fields))
        if numbers:
            values = "  ".join(f"{name} {number:.4g}" for name, number in numbers.items())
            say(f"step {train_step}: {values}")


@dataclasses.dataclass(frozen=True)
class Validate:
    """Computes the loss of the EMA parameters on the validation examples."""

    due: Every
    workdir: epath.Path
    validation: Validation
    writer: metrics.Writer
    dispensable: Dispensable = dataclasses.field(default_factory=Dispensable)

    def run(self, train_step: int, params: Params) -> None:
        """Write the losses to `validation/<train_step>.json`, TensorBoard and the terminal."""
        try:
            found = validate(self.validation, params)
        except NotFiniteError as error:
            say(f"warning: no validation of step {train_step}: {error}")
            return
        scalars = {
            f"validation/{name if part == SEEN else f'{part}_{name}'}": value
            for part, summary in found.items()
            for name, value in summary.scalars().items()
        }
        self.writer.write_scalars(train_step, scalars)
        if jax.process_index() == 0:
            path = self.workdir / "validation" / f"{train_step:08d}.json"
            with self.dispensable.writing("validation losses"):
                write_json(path, as_json(self.validation, found))
        others = "".join(
            f"; {part} {summary.text()}" for part, summary in found.items() if part != SEEN
        )
        say(f"step {train_step}: validation loss {found[SEEN].line()}{others}")
