"""The validation suite: the denoising loss on examples that training never reads."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from tp_jax import data
from tp_jax.cli.flags import output_folder, required_output_file
from tp_jax.data import SEEN, ValidationExamples
from tp_jax.evals.over_seeds import Columns, collect
from tp_jax.evals.suite import EvaluateInTraining, Suite
from tp_jax.evals.validation.losses import Validation
from tp_jax.evals.validation.results import Summary, summarise
from tp_jax.files.atomic import write_json
from tp_jax.files.folders import make_folder
from tp_jax.messages.errors import NotFiniteError, UserError
from tp_jax.messages.progress import say
from tp_jax.models.parameters import Params
from tp_jax.parallel.mesh import check_batch_size
from tp_jax.sampling.description import weights_identity
from tp_jax.sampling.loaded import Loaded, ModelOnMesh
from tp_jax.sampling.request import Request, matmul_precision, open_model, request_fields


class ValidationSuite(Suite):
    """Computes the denoising loss on validation examples."""

    name = "validation"

    def run(self, values: Mapping[str, Any]) -> None:
        """Compute the losses of a workdir, or summarise those of several over seeds."""
        if values["collect"]:
            table = required_output_file("out", ".json")
            plain = ("loss", "standard_error")
            collect(epath.Path(values["collect"]), table, self.name, columns, plain=plain)
            return
        validate_workdir(Request(out=output_folder("out"), **request_fields(values)))

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Raise a UserError: training validates by its own section of the config."""
        raise UserError(
            f"config.evaluation.suite={self.name!r}: training computes the loss on validation data "
            f"by itself: set config.validation.every_steps, and another suite or none"
        )


def make_validation(
    model: ModelOnMesh,
    parts: Mapping[str, ValidationExamples],
    batch_size: int | None = None,
    latent_steps: int | None = None,
    halting_epsilon: float | None = None,
) -> Validation:
    """Build the function of parameters that `config.validation` describes.

    Args:
      model: the model.
      parts: the examples, from `data.open_validation`.
      batch_size: examples per batch; None is that of the config.
      latent_steps: number T of latent steps; None is that of training.
      halting_epsilon: ε of halting by "threshold"; None halts tokens as the config says.

    Raises:
      UserError: the batch size doesn't fit the mesh, or the latent steps don't fit the model.
    """
    fields = model.config.validation
    name = "config.validation.batch_size" if batch_size is None else "--batch_size"
    size: int = fields.batch_size if batch_size is None else batch_size
    check_batch_size(model.mesh, name, size)
    return Validation(
        model=model.model,
        objective=model.built.objective,
        mesh=model.mesh,
        parts=parts,
        seed=fields.seed,
        times=fields.times,
        batch_size=size,
        latent_steps=latent_steps,
        halting_epsilon=halting_epsilon,
        encoder=model.codec if next(iter(parts.values())).encoded else None,
    )


def validate(
    validation: Validation, params: Params, *, progress: bool = False
) -> dict[str, Summary]:
    """Compute the losses of parameters, and summarise those of each part.

    Args:
      validation: the examples, and how the model is run on them.
      params: parameters of the model.
      progress: show progress bars.

    Raises:
      NotFiniteError: a loss has NaN or infinity.
    """
    found = {
        part: summarise(validation.losses(params, part, progress=progress))
        for part in validation.parts
    }
    for part, summary in found.items():
        if not abs(summary.loss) < float("inf"):
            raise NotFiniteError(f"the validation loss of {part} examples is {summary.loss}")
    return found


def as_json(validation: Validation, found: Mapping[str, Summary]) -> dict[str, Any]:
    """Return results as a JSON object: the fields of `SEEN`, and the other parts by name.

    Args:
      validation: what computed them; its settings decide which results can be compared.
      found: from `validate`.
    """
    others = {part: summary.to_json() for part, summary in found.items() if part != SEEN}
    settings = {
        "seed": validation.seed,
        "times": validation.times,
        "latent_steps": validation.latent_steps,
        "halting_epsilon": validation.halting_epsilon,
        "objective": dataclasses.asdict(validation.objective),  # pyright: ignore
    }
    return {**found[SEEN].to_json(), **others, "settings": settings}


def validate_workdir(request: Request) -> dict[str, Any]:
    """Compute the losses of the model of a workdir, and write `scores.json`.

    Returns:
      The content of `scores.json`.

    Raises:
      UserError: the workdir has no model, or held nothing out for validation.
    """
    loaded = open_model(request)
    parts = _open_examples(loaded, request.latent_steps)
    validation = make_validation(
        loaded, parts, request.batch_size, request.latent_steps, request.halting_epsilon
    )
    # Make the folder first: if that fails, no time was spent on losses.
    make_folder(request.out, f"--out={request.out}")
    with matmul_precision(request.matmul_precision):
        found = validate(validation, loaded.params, progress=True)
    fields = ("ema", "thinking", "latent_steps", "halting_epsilon", "matmul_precision")
    content = {
        "suite": ValidationSuite.name,
        "model": {
            "workdir": str(request.workdir.absolute()),
            "checkpoint": loaded.train_step,
            "weights": weights_identity(request.workdir, loaded.train_step),
            "dtype": loaded.built.model.dtype,
            **{name: getattr(request, name) for name in fields},
        },
        "data": loaded.config.data.source,
        **as_json(validation, found),
    }
    if jax.process_index() == 0:
        write_json(request.out / "scores.json", content)
        print("\n".join(f"{part:8}{summary.line()}" for part, summary in found.items()))
        say(f"wrote scores.json to {request.out}")
    return content


def _open_examples(loaded: Loaded, latent_steps: int | None) -> dict[str, ValidationExamples]:
    """Open the validation examples of a trained model.

    Of a model of frames, latent step T predicts the frame after T moves, so that the examples
    depend on T.
    """
    config = copy.deepcopy(loaded.config)
    thinking = config.model.thinking
    thinking.latent_steps = latent_steps or thinking.latent_steps
    # Which numbers were trained doesn't matter, and T may be outside of them.
    thinking.latent_steps_range = ()
    space = loaded.codec.space if loaded.codec else None
    source = data.open_source(config, space)
    return data.open_validation(source, config, space, data.open_text(source, config))


def columns(content: dict[str, Any], variant: str) -> Columns:
    """Convert the content of one `scores.json` to columns, for `over_seeds.collect`."""
    parts = {"": content} | {
        f"{name} ": part for name, part in content.items() if isinstance(part, dict)
    }
    return {
        variant: {
            f"{name}{row}": float(value)
            for name, part in parts.items()
            if "bands" in part
            for row, value in (
                *(
                    (f"timestep {band} loss", found["loss"])
                    for band, found in part["bands"].items()
                ),
                ("loss", part["loss"]),
            )
        }
    }
