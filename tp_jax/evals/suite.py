"""What a suite of evaluations is: its flags, how it draws, judges and reports."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from etils import epath

from tp_jax.messages.errors import UserError
from tp_jax.sampling.loaded import Loaded, ModelOnMesh

# Scores the parameters of a train_step: (model with parameters, folder for pictures and details)
# -> JSON fields, of which the Python floats go to TensorBoard. All processes call it and draw;
# only the first one writes files, and only its return value counts: others may return {}.
EvaluateInTraining = Callable[[Loaded, epath.Path], Mapping[str, Any]]


class Suite(abc.ABC):
    """One suite; it runs from the command line and, if it can, in training.

    Attributes:
      name: its key in `SUITES`, which `--suite` and `config.evaluation.suite` take.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def run(self, values: Mapping[str, Any]) -> None:
        """Draws or reads, judges and reports, as the flags say.

        Args:
          values: of all flags, by their names. `cli.flags.required` reads one that must be given.

        Raises:
          UserError: anything that was asked for can't be had.
        """

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Checks `config.evaluation` before training begins, and makes what scores parameters.

        Args:
          model: as it trains; `model.config.evaluation` has the settings.

        Raises:
          UserError: the suite can't be run in training, or its settings don't fit the model.
        """
        raise UserError(
            f"config.evaluation.suite={self.name!r} can't be computed in training: score "
            f"checkpoints with python -m tp_jax.evaluate --suite={self.name}"
        )

    def settings(self, model: ModelOnMesh) -> Any:
        """The section of `config.evaluation` with the suite's name, which `config.py` defines."""
        return model.config.evaluation[self.name]


def check_local(model: ModelOnMesh, suite: str) -> None:
    """Raises a UserError for a workdir that isn't a local folder, where verdicts are appended."""
    if "://" in str(model.workdir):
        raise UserError(
            f"config.evaluation.suite={suite!r} writes verdicts line by line, which needs a local "
            f"folder, but --workdir={model.workdir}: score checkpoints with tp_jax.evaluate"
        )


def choose_mode(values: Mapping[str, Any], modes: tuple[str, ...]) -> str | None:
    """The one of these flags that was given, or None.

    Raises:
      UserError: more than one was given.
    """
    given = [name for name in modes if values[name]]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} don't go together: give one")
    return given[0] if given else None


def path_of(values: Mapping[str, Any], name: str) -> epath.Path | None:
    """The path that a flag gives, or None."""
    return epath.Path(values[name]) if values[name] else None
