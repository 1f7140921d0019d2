"""Base class of evaluation suites, and helpers for their flags."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from etils import epath

from tp_jax.evals.task import Task
from tp_jax.files.hub import local
from tp_jax.messages.errors import UserError
from tp_jax.sampling.loaded import Loaded, ModelOnMesh

# Scores a model during training: (model with parameters, folder for pictures and details) -> fields
# that are written as JSON; Python floats among them also go to TensorBoard. All processes call it,
# because all of them generate samples. Only the first process writes files, and only its return
# value is used; the others may return {}.
EvaluateInTraining = Callable[[Loaded, epath.Path], Mapping[str, Any]]


class Suite(abc.ABC):
    """A suite of scores, run from the command line and, for some suites, during training.

    Attributes:
      name: key in `SUITES`, the value of `--suite` and `config.evaluation.suite`.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def run(self, values: Mapping[str, Any]) -> None:
        """Run the suite from the command line: get samples, score them, and report the scores.

        Args:
          values: values of all flags by name. Use `cli.flags.required` for a flag that must be set.

        Raises:
          UserError: a flag or an input file is invalid.
        """

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Check `config.evaluation` and return the function that scores the model during training.

        Called once before training begins.

        Args:
          model: the model that is trained; `model.config.evaluation` has the settings.

        Raises:
          UserError: the suite can't run during training, or its settings don't fit the model.
        """
        raise UserError(
            f"config.evaluation.suite={self.name!r} can't run during training: score checkpoints "
            f"with python -m tp_jax.evaluate --suite={self.name}"
        )

    def task(self, model: Loaded, seed: int) -> Task | None:
        """Return the samples of this suite that can be judged one by one; None if it has none.

        Args:
          model: the model that is sampled.
          seed: seed of what the model is asked for, where the suite chooses it at random.

        Raises:
          UserError: the suite doesn't fit the model.
        """
        return None

    def settings(self, model: ModelOnMesh) -> Any:
        """Return the section of `config.evaluation` with the suite's name."""
        return model.config.evaluation[self.name]


def check_local(model: ModelOnMesh, suite: str) -> None:
    """Raise a UserError unless the workdir is a local folder, to which lines can be appended."""
    if "://" in str(model.workdir):
        raise UserError(
            f"config.evaluation.suite={suite!r} appends verdicts to a file, which needs a local "
            f"folder, but --workdir={model.workdir} isn't local: score checkpoints with "
            f"python -m tp_jax.evaluate --suite={suite}"
        )


def choose_mode(values: Mapping[str, Any], modes: tuple[str, ...]) -> str | None:
    """Return the name of the flag among `modes` that is set; None if none is.

    Raises:
      UserError: more than one is set.
    """
    given = [name for name in modes if values[name]]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other: give only one")
    return given[0] if given else None


def path_of(values: Mapping[str, Any], name: str) -> epath.Path | None:
    """Return the path that a flag is set to; None if it isn't set."""
    return local(values[name]) if values[name] else None
