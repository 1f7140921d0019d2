"""Actions that training repeats: log, save, pictures, evaluation. Each has its schedule."""

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from tp_jax.evals import find_suite
from tp_jax.evals.suite import EvaluateInTraining
from tp_jax.files.atomic import write_json
from tp_jax.messages.progress import say
from tp_jax.models.parameters import Params
from tp_jax.parallel.mesh import padded_batch_size
from tp_jax.pictures.grids import make_grid, save_png, to_uint8
from tp_jax.sampling.loaded import ModelOnMesh
from tp_jax.sampling.request import make_generator
from tp_jax.train import metrics
from tp_jax.train.checkpoint import Checkpoints, Progress
from tp_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Every:
    """Due every so many train_steps, and after the last.

    Attributes:
      steps: between two times.
      last: the last train_step of the run.
    """

    steps: int
    last: int

    def __call__(self, train_step: int) -> bool:
        """Whether it is due after this train_step."""
        return train_step % self.steps == 0 or train_step == self.last


class ResumableData(Protocol):
    """The data iterator, as far as saving asks."""

    def get_state(self) -> dict[str, Any]:
        """Its position, as JSON."""
        ...


@dataclasses.dataclass(frozen=True)
class Log:
    """Writes the window's means to TensorBoard and as a line on the terminal."""

    due: Every
    window: metrics.Window
    writer: Any

    def run(self, train_step: int) -> None:
        """Closes the window."""
        means = self.window.close()
        self.writer.write_scalars(train_step, metrics.scalars(means))
        say(metrics.line(train_step, self.due.last, means))


@dataclasses.dataclass(frozen=True)
class Save:
    """Saves a checkpoint, from which the run can go on."""

    due: Every
    window: metrics.Window
    checkpoints: Checkpoints
    data: ResumableData

    def run(self, state: TrainState) -> None:
        """Saves; nothing is saved of a run whose numbers aren't finite.

        Raises:
          TrainingError: they aren't, or the files can't be written.
        """
        self.window.check_finite()
        with self.window.paused():
            progress = Progress(self.data.get_state(), self.window.seconds)
            self.checkpoints.save(state, progress)


class WithAverage(Protocol):
    """An action that takes long and works on the averaged parameters."""

    @property
    def due(self) -> Every:
        """When."""
        ...

    def run(self, train_step: int, params: Params) -> None:
        """What."""
        ...


class Pictures:
    """A grid of samples of the averaged parameters, always from the same noise."""

    def __init__(self, due: Every, model: ModelOnMesh, conditions: Any, writer: Any) -> None:
        """`conditions` of the samples are arrays [num, …], num being `config.train.samples`."""
        self.due, count = due, model.config.train.samples
        self._generator = make_generator(model, batch_size=padded_batch_size(model.mesh, count))
        self._conditions, self._model, self._writer = conditions, model, writer

    def run(self, train_step: int, params: Params) -> None:
        """Samples, writes `samples/<train_step>.png` and an image to TensorBoard."""
        seed = self._model.config.seed
        batches = self._generator.batches(params, self._conditions, seed)
        grid = make_grid(to_uint8(np.concatenate(list(batches))))
        if jax.process_index() == 0:
            path = self._model.workdir / "samples" / f"{train_step:08d}.png"
            save_png(path, grid)
            shown = grid if grid.shape[-1] in (1, 3) else grid[..., :3]
            self._writer.write_images(train_step, {"samples": shown[None]})
            say(f"samples of step {train_step}: {path}")


def open_evaluation(model: ModelOnMesh) -> EvaluateInTraining | None:
    """What `config.evaluation` asks for, checked; None where it asks for nothing.

    Raises:
      UserError: the suite is unknown, or its settings don't fit the model.
    """
    name = model.config.evaluation.suite
    return find_suite(name, "config.evaluation.suite").in_training(model) if name else None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of the averaged parameters, always from the same noise."""

    due: Every
    model: ModelOnMesh
    evaluate: EvaluateInTraining
    writer: Any

    def run(self, train_step: int, params: Params) -> None:
        """Scores, into TensorBoard and `evaluations/<train_step>.json`."""
        folder = self.model.workdir / "evaluations"
        loaded = self.model.with_params(params, train_step)
        fields = self.evaluate(loaded, folder / f"{train_step:08d}")
        numbers = {f"evaluation/{k}": v for k, v in fields.items() if isinstance(v, float)}
        self.writer.write_scalars(train_step, numbers)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{train_step:08d}.json", dict(fields))
        values = "  ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        say(f"step {train_step}: {values}")
