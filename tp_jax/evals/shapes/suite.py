"""The Shapes suite: GenEval's skills in pictures of coloured shapes, checked by a program."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax.cli.flags import output_folder, required_output_file, required_path
from tp_jax.evals.geneval.base import GenEvalLayoutSuite
from tp_jax.evals.geneval.layout import find_images
from tp_jax.evals.geneval.prompts import PROMPTS_PER_TAG
from tp_jax.evals.geneval.results import as_table
from tp_jax.evals.over_seeds import Columns, collect
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.shapes import scores as shapes
from tp_jax.evals.shapes.command import SAMPLES_PER_PROMPT
from tp_jax.evals.shapes.task import ShapesTask, make_task
from tp_jax.evals.suite import EvaluateInTraining, check_local, choose_mode
from tp_jax.files.atomic import write_json
from tp_jax.files.jsonl import read_lines
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import run_on_first
from tp_jax.pictures.galleries import make_captioned_grid
from tp_jax.pictures.grids import save_png
from tp_jax.pictures.reading import read_rgb
from tp_jax.sampling.loaded import Loaded, ModelOnMesh
from tp_jax.sampling.prompts import encode_prompts, load_text_encoder
from tp_jax.sampling.request import make_generator, picture_size
from tp_jax.worlds.shapes.scenes import DIFFICULTIES

PARTS = ("overall", "seen", "unseen")  # fields of the scores
GALLERY_COLUMNS = 8  # images per skill in the gallery


class ShapesSuite(GenEvalLayoutSuite):
    """Scores GenEval's skills in pictures of shapes."""

    name = "shapes"
    samples_per_prompt = SAMPLES_PER_PROMPT
    square_only = True

    def read_prompts(self, path: epath.Path | None, config: ConfigDict) -> list[Prompt]:
        """Return the prompts of the difficulty that the model was trained with."""
        return shapes.make_prompts(difficulty=DIFFICULTIES[config.shapes.difficulty])

    def run(self, values: Mapping[str, Any]) -> None:
        """Generate images, score them, or both; or summarise scores over seeds."""
        mode = choose_mode(values, ("make", "collect"))
        if mode == "collect":
            table = required_output_file("out", ".json")
            collect(epath.Path(values["collect"]), table, self.name, columns)
        elif mode == "make":
            self.make_images(self.request(values))
        elif values["workdir"]:
            out = output_folder("out")
            images = out / "images"
            self.make_images(self.request(values, images))
            if jax.process_index() == 0:
                score_shapes(images, out)
        else:
            score_shapes(required_path("samples"), output_folder("out"))

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Return a function that generates one image per prompt and scores the images."""
        if model.built.model.condition_kind != "text":
            raise UserError(
                f"config.evaluation.suite={self.name!r} needs a text-conditional model, but this "
                f"{model.config.model.kind} model takes no text: choose another suite"
            )
        check_local(model, self.name)
        # Raises a UserError for a model of latents without an autoencoder.
        picture_size(model)
        num, prompts = self.settings(model).num, self.read_prompts(None, model.config)
        if not 0 <= num <= len(prompts):
            raise UserError(
                f"config.evaluation.shapes.num={num}: give 1 to {len(prompts)}, or 0 for all "
                f"prompts"
            )
        prompts = prompts[: num or None]
        texts = [prompt.text for prompt in prompts]
        encoded = encode_prompts(model, texts, "", load_text_encoder(model))
        generator = make_generator(model, batch_size=model.config.evaluation.batch_size)

        def evaluate(loaded: Loaded, out: epath.Path) -> Mapping[str, Any]:
            images, seed = out / "images", model.config.seed
            # A run that resumes from an older checkpoint finds images of other parameters here.
            run_on_first(lambda: out.rmtree(missing_ok=True))
            self.generate_missing(
                loaded, generator, prompts, encoded, self.samples_per_prompt, seed, images
            )
            content: dict[str, Any] = {}
            # If scoring fails on the first process, `run_on_first` stops all processes.
            run_on_first(lambda: content.update(score_shapes(images, out)))
            if not content:
                return {}
            found = {part: content[part] for part in PARTS if content[part]}
            return {
                f"{part}/{tag}": float(value)
                for part, fields in found.items()
                for tag, value in (fields["tags"] | {"mean": fields["overall"]}).items()
            }

        return evaluate

    def task(self, model: Loaded, seed: int) -> ShapesTask:
        """Return the prompts as a task."""
        return make_task(model)


def columns(content: dict[str, Any], variant: str) -> Columns:
    """Convert the content of one `scores.json` to columns, for `over_seeds.collect`."""
    rows = {
        f"{part} {tag}": float(value)
        for part in PARTS
        for tag, value in (content[part]["tags"] | {"mean": content[part]["overall"]}).items()
    }
    return {variant: rows}


def score_shapes(folder: epath.Path, out: epath.Path) -> dict[str, Any]:
    """Score the images of Shapes; write `results.jsonl`, `scores.json` and `gallery.png`.

    Args:
      folder: the images.
      out: folder for the files.

    Returns:
      The content of `scores.json`.

    Raises:
      UserError: images are missing or don't belong to prompts of Shapes.
    """
    images = find_images(folder)
    wanted = shapes.prompts_of_images(images)
    out.mkdir(parents=True, exist_ok=True)
    # Judge all images again, because they may have changed since the last verdicts.
    (out / "results.jsonl").unlink(missing_ok=True)
    scores = shapes.score(folder, wanted, out / "results.jsonl")
    content = {"suite": "shapes", "samples": str(folder), **dataclasses.asdict(scores)}
    write_json(out / "scores.json", content)
    save_png(out / "gallery.png", _gallery(out / "results.jsonl"))
    print(as_table({name: content[name] for name in PARTS if content[name]}))
    say(f"wrote scores.json, results.jsonl and gallery.png to {out}")
    return content


def _gallery(results: epath.Path) -> np.ndarray:
    """Arrange some images of every skill, with their prompts and verdicts."""
    lines = [line for _, line in read_lines(results)]
    chosen = []
    for tag in PROMPTS_PER_TAG:
        of_tag = [line for line in lines if line["tag"] == tag]
        num = min(GALLERY_COLUMNS, len(of_tag))
        indices = np.linspace(0, len(of_tag) - 1, num).astype(int)
        chosen += [of_tag[i] for i in indices]
    images = [read_rgb(epath.Path(line["filename"])) for line in chosen]
    return make_captioned_grid(
        np.stack(images),
        [line["prompt"] for line in chosen],
        correct=[line["correct"] for line in chosen],
        columns=GALLERY_COLUMNS,
    )
