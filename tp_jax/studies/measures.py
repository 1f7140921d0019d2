"""What the cells of a study are scored by: one adapter for each number of an evaluation suite.

A measure says how `scores.json` of its suite becomes one number, and which values of single
examples can be paired between variants.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.evals import SUITES
from tp_jax.files.jsonl import read_json, read_lines
from tp_jax.messages.errors import UserError

# Sources that generate their examples.
WORLDS = ("shapes", "frozenlake")


@dataclasses.dataclass(frozen=True)
class Scored:
    """The score of a cell.

    Attributes:
      score: the score.
      examples: [N] values of the examples whose mean it is, in an order that all cells share; None
        if the suite has none, or the score isn't a mean.
      identity: of what was scored, such as a hash of the examples. Cells with different ones can't
        be compared.
      latent_steps: mean number of latent steps of a token; None if the suite doesn't count them.
    """

    score: float
    examples: np.ndarray | None = None
    identity: str = ""
    latent_steps: float | None = None


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of an evaluation suite.

    Attributes:
      name: of the measure, in tables and files.
      suite: the suite, a key of `SUITES`.
      title: what is measured, with its unit.
      higher_is_better: whether it is.
      read: returns the score from the folder of an evaluation; None if the suite didn't measure it.
      factor: what scores are multiplied with in tables: 100 for percent.
    """

    name: str
    suite: str
    title: str
    higher_is_better: bool
    read: Callable[[epath.Path], Scored | None]
    factor: float = 1.0


def _shapes(folder: epath.Path) -> Scored:
    score = read_json(folder / "scores.json")["overall"]["overall"]
    lines = sorted((line["filename"], line["correct"]) for _, line in _verdicts(folder))
    examples = np.array([correct for _, correct in lines], np.float64)
    # The score is the mean over skills; it is that over images if every skill has as many.
    return Scored(score, examples if np.isclose(examples.mean(), score) else None)


def _verdicts(folder: epath.Path) -> Sequence[tuple[str, dict[str, Any]]]:
    return read_lines(folder / "results.jsonl")


def _frozenlake(folder: epath.Path) -> Scored:
    return Scored(read_json(folder / "scores.json")["model"]["all"]["goal"])


def _losses(content: dict[str, Any]) -> Scored:
    losses = np.array(content["losses"], np.float64)
    return Scored(content["loss"], losses, content["digest"], content["latent_steps"])


def _validation(folder: epath.Path) -> Scored:
    return _losses(read_json(folder / "scores.json"))


def _unseen(folder: epath.Path) -> Scored | None:
    content = read_json(folder / "scores.json").get("unseen")
    return _losses(content) if content else None


def _frechet(folder: epath.Path) -> Scored:
    return Scored(read_json(folder / "scores.json")["frechet_distance"])


def _accuracy(folder: epath.Path) -> Scored:
    return Scored(read_json(folder / "scores.json")["accuracy"])


MEASURES = (
    Measure("shapes", "shapes", "correct images, %", True, _shapes, 100),
    Measure("frozenlake", "frozenlake", "walks that reach the goal, %", True, _frozenlake, 100),
    Measure("digits", "digits", "Fréchet distance of digits", False, _frechet),
    Measure("digits-class", "digits", "digits of the right class, %", True, _accuracy, 100),
    Measure("validation", "validation", "loss on held-out examples", False, _validation),
    Measure("unseen", "validation", "loss on unseen combinations", False, _unseen),
)


def suites_of(config: ConfigDict, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the suites that score a config: that of its data source, and `validation`.

    `validation` is left out if nothing is held out for it.

    Args:
      config: the config of the study.
      wanted: names of suites, instead of these.

    Raises:
      UserError: a wanted suite doesn't exist or has no measure, or there is no suite.
    """
    measured = {m.suite: None for m in MEASURES if m.suite in SUITES}
    for suite in wanted:
        if suite not in measured:
            raise UserError(f"--suites={suite}: choose from {', '.join(measured)}")
    own = config.data.source.partition("/")[0]
    suites = tuple(wanted) or tuple(
        suite
        for suite in (own, "validation")
        if suite in measured and (suite == own or _holds_out(config))
    )
    if not suites or ("validation" in suites and not _holds_out(config)):
        remedy = "set config.validation.fraction=0.1, say"
        raise UserError(
            f"config.data.source={config.data.source!r} has no suite, and config.validation holds "
            f"nothing out: {remedy}"
        )
    return suites


def _holds_out(config: ConfigDict) -> bool:
    """Return whether a config holds out examples; worlds generate others for validation."""
    fields = config_lib.flat(config)
    given = [fields.get(f"validation.{name}") for name in ("fraction", "split", "dir")]
    return any(given) or config.data.source.partition("/")[0] in WORLDS


def measures_of(suites: Sequence[str]) -> tuple[Measure, ...]:
    """Return the measures of some suites, in the order of the suites."""
    return tuple(m for suite in suites for m in MEASURES if m.suite == suite)


def accepted_flags(suite: str) -> set[str]:
    """Return the names of the flags of a suite."""
    from absl import flags

    values = flags.FlagValues()
    SUITES[suite].define_flags(values)
    return set(values)
