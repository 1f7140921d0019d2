"""The digits suite: a Fréchet distance and the classes of generated digits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax import data
from tp_jax.cli.flags import output_folder, required_output_file
from tp_jax.evals.digits.scores import Judge, Scores, make_judge
from tp_jax.evals.over_seeds import Columns, collect
from tp_jax.evals.suite import EvaluateInTraining, Suite
from tp_jax.files.atomic import write_json
from tp_jax.files.folders import make_folder
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.models.parameters import Params
from tp_jax.pictures.grids import make_grid, save_png, to_uint8
from tp_jax.sampling.description import describe
from tp_jax.sampling.generator import Generator, choose_labels
from tp_jax.sampling.loaded import Loaded, ModelOnMesh
from tp_jax.sampling.request import (
    Request,
    make_generator,
    matmul_precision,
    open_generator,
    request_fields,
)

DEFAULT_NUM = 1_000
# Images in the picture, and the smallest side in pixels at which one is shown.
SHOWN, SHOWN_SIDE = 100, 32


class DigitsSuite(Suite):
    """Samples digits of all classes, and compares them with scanned ones."""

    name = "digits"

    def run(self, values: Mapping[str, Any]) -> None:
        """Sample and score digits, or summarise scores over seeds."""
        if values["collect"]:
            table = required_output_file("out", ".json")
            collect(epath.Path(values["collect"]), table, self.name, columns, plain=("distance",))
            return
        score_workdir(Request(out=output_folder("out"), **request_fields(values)))

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Return a function that samples and scores digits, always from the same noise."""
        judge = _judge_for(model, f"config.evaluation.suite={self.name!r}")
        num, batch_size = self.settings(model).num, model.config.evaluation.batch_size
        generator = make_generator(model, batch_size=batch_size)

        def evaluate(loaded: Loaded, out: epath.Path) -> Mapping[str, Any]:
            images, labels = _sample(generator, loaded.params, num, model.config.seed)
            return dataclasses.asdict(judge.score(images, labels))

        return evaluate


def _judge_for(model: ModelOnMesh, name: str) -> Judge:
    """Return what scores the digits of a model.

    Args:
      model: the model.
      name: the flag or config field that selected the suite, for messages.

    Raises:
      UserError: the model wasn't trained on digits.
    """
    config = model.config
    if config.data.source != "digits" or not model.built.model.classes:
        raise UserError(
            f"{name}: {model.workdir} was trained on {config.data.source}, but this suite needs a "
            f"model of digits and their classes, such as that of configs/quickstart.py"
        )
    source = data.open_source(config)
    held_out = data.held_out_part(source, config) if config.validation.fraction else None
    return make_judge(data.training_part(source, config), held_out)


def _sample(
    generator: Generator, params: Params, num: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `num` images, uint8 [N, 8, 8, 1], of all classes in turn, and their classes [N]."""
    labels = choose_labels((), num, generator.model.config.classes)
    batches = generator.batches(params, {"label": labels}, seed)
    return to_uint8(np.concatenate(list(batches))), labels


def score_workdir(request: Request) -> dict[str, Any]:
    """Sample digits from the model of a workdir, and write `scores.json` and `grid.png`.

    Returns:
      The content of `scores.json`.

    Raises:
      UserError: the workdir has no model of digits.
    """
    num = DEFAULT_NUM if request.num is None else request.num
    if num < 2:
        raise UserError(f"--num={num}: must be 2 or more")
    loaded, generator = open_generator(request)
    judge = _judge_for(loaded, "--suite=digits")
    # Make the folder first: if that fails, no time was spent on sampling.
    make_folder(request.out, f"--out={request.out}")
    with matmul_precision(request.matmul_precision):
        images, labels = _sample(generator, loaded.params, num, request.seed)
    scores = judge.score(images, labels)
    drawing = describe(dataclasses.replace(request, num=num), loaded, None)
    content = {"suite": DigitsSuite.name, "drawing": drawing, **dataclasses.asdict(scores)}
    if jax.process_index() == 0:
        write_json(request.out / "scores.json", content)
        save_png(request.out / "grid.png", make_grid(images[:SHOWN], min_side=SHOWN_SIDE))
        print(as_table(scores))
        say(f"wrote scores.json and grid.png to {request.out}")
    return content


def as_table(scores: Scores) -> str:
    """Return the scores in words, one in a line."""
    real = scores.frechet_distance_of_training
    known = "" if real is None else f" (of the training digits: {real:.4f})"
    return (
        f"Fréchet distance to the {scores.reference}: {scores.frechet_distance:.4f}{known}, of "
        f"{scores.features['components']} principal components\n"
        f"classes as asked for: {100 * scores.accuracy:.1f} %; the classifier knows "
        f"{100 * scores.classifier_accuracy:.1f} % of other digits"
    )


def columns(content: dict[str, Any], variant: str) -> Columns:
    """Convert the content of one `scores.json` to columns, for `over_seeds.collect`."""
    names = ("frechet_distance", "accuracy")
    return {variant: {name.replace("_", " "): float(content[name]) for name in names}}
