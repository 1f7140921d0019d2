"""Shapes, the embedded twin of GenEval: the package has its prompts and an exact checker."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.cli.flags import required
from tp_jax.evals.geneval.layout import GenEvalLayout
from tp_jax.evals.geneval.prompts import PROMPTS, find_images
from tp_jax.evals.geneval.results import as_table
from tp_jax.evals.over_seeds import Columns, collect
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.prompted import description_path
from tp_jax.evals.shapes import scores as shapes
from tp_jax.evals.suite import EvaluateInTraining, check_local, choose_mode
from tp_jax.files.atomic import write_json
from tp_jax.files.jsonl import read_json, read_lines
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import run_on_first
from tp_jax.pictures.galleries import make_captioned_grid
from tp_jax.pictures.grids import save_png
from tp_jax.pictures.reading import read_rgb
from tp_jax.sampling.loaded import Loaded, ModelOnMesh
from tp_jax.sampling.prompts import encode_prompts, load_text_encoder
from tp_jax.sampling.request import make_generator, picture_size

# Of the scores.
PARTS = ("overall", "seen", "unseen")
# Images of each skill that a gallery shows.
SHOWN = 8


class ShapesSuite(GenEvalLayout):
    """GenEval's skills, in pictures of shapes."""

    name = "shapes"
    samples = 1
    square = True

    def read_prompts(self, path: epath.Path | None) -> list[Prompt]:
        """As of `PromptedSuite`: always the package's own."""
        return shapes.prompts()

    def run(self, values: Mapping[str, Any]) -> None:
        """Draws, scores, or both; or collects."""
        mode = choose_mode(values, ("make", "collect"))
        if mode == "collect":
            collect(epath.Path(values["collect"]), epath.Path(required("out")), self.name, columns)
        elif mode == "make":
            self.draw(self.request(values))
        elif values["workdir"]:
            out = epath.Path(required("out"))
            images = out / "images"
            self.draw(self.request(values, images))
            if jax.process_index() == 0:
                score_shapes(images, out)
        else:
            score_shapes(epath.Path(required("samples")), epath.Path(required("out")))

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Draws the prompts once each."""
        if model.built.model.condition_kind != "text":
            raise UserError(
                f"config.evaluation.suite={self.name!r} draws prompts, but this "
                f"{model.config.model.kind} model takes none: choose another suite"
            )
        check_local(model, self.name)
        picture_size(model)
        num = self.settings(model).num
        if not 0 <= num <= len(shapes.prompts()):
            raise UserError(
                f"config.evaluation.shapes.num={num}: give 1 to {len(shapes.prompts())}, or 0 for "
                f"all prompts"
            )
        prompts = self.chosen_prompts(None, num or None)
        texts = [prompt.text for prompt in prompts]
        encoded = encode_prompts(model, texts, "", load_text_encoder(model))
        generator = make_generator(model, batch_size=model.config.evaluation.batch_size)

        def evaluate(loaded: Loaded, out: epath.Path) -> Mapping[str, Any]:
            images, seed = out / "images", model.config.seed
            # A run that goes on from an older checkpoint finds images of other parameters here.
            run_on_first(lambda: out.rmtree(missing_ok=True))
            self.draw_encoded(loaded, generator, prompts, encoded, self.samples, seed, images)
            content: dict[str, Any] = {}
            # Where the first process refuses, all have to stop.
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


def columns(content: dict[str, Any], variant: str) -> Columns:
    """The scores in one `scores.json`, for `over_seeds.collect`."""
    rows = {
        f"{part} {tag}": float(value)
        for part in PARTS
        for tag, value in (content[part]["tags"] | {"mean": content[part]["overall"]}).items()
    }
    return {variant: rows}


def score_shapes(folder: epath.Path, out: epath.Path) -> dict[str, Any]:
    """Scores drawn Shapes: `results.jsonl`, `scores.json` and `gallery.png` in a folder.

    Raises:
      UserError: images are missing, or aren't of these prompts.
    """
    images = find_images(folder)
    wanted = shapes.drawn_prompts(images)
    path, drawn = description_path(folder), len(images)
    asked = read_json(path).get("images") if path.exists() else drawn
    if drawn != asked:
        raise UserError(
            f"{folder} has {drawn} of {asked} images: the same command that drew them goes on"
        )
    out.mkdir(parents=True, exist_ok=True)
    # Anew, because the images may be.
    (out / "results.jsonl").unlink(missing_ok=True)
    scores = shapes.score(folder, wanted, out / "results.jsonl")
    content = {"suite": "shapes", "samples": str(folder), **dataclasses.asdict(scores)}
    write_json(out / "scores.json", content)
    save_png(out / "gallery.png", _gallery(out / "results.jsonl"))
    print(as_table({name: content[name] for name in PARTS if content[name]}))
    say(f"scores, every image's verdict and a gallery: {out}")
    return content


def _gallery(results: epath.Path) -> np.ndarray:
    """Images of every skill with prompt and verdict."""
    lines = [line for _, line in read_lines(results)]
    chosen = []
    for tag in PROMPTS:
        of_tag = [line for line in lines if line["tag"] == tag]
        places = np.linspace(0, len(of_tag) - 1, min(SHOWN, len(of_tag))).astype(int)
        chosen += [of_tag[i] for i in places]
    images = [read_rgb(epath.Path(line["filename"])) for line in chosen]
    return make_captioned_grid(
        np.stack(images),
        [line["prompt"] for line in chosen],
        [line["correct"] for line in chosen],
        columns=SHOWN,
    )
