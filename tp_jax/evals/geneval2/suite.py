"""The GenEval 2 suite: generate images for the official scorer, and read its results."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax.cli.flags import output_file, required_path
from tp_jax.evals.geneval2.command import SAMPLES_PER_PROMPT
from tp_jax.evals.geneval2.scores import as_table, read_answers, read_prompts, soft_tifa
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.prompted import PromptedSuite
from tp_jax.evals.suite import choose_mode
from tp_jax.files.atomic import write_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.pictures.grids import save_png

# What the official scorer reads with --image_filepath_data.
IMAGES = "images.json"


class GenEval2Suite(PromptedSuite):
    """Scores every part of a prompt by questions to a VQA model."""

    name = "geneval2"
    samples_per_prompt = SAMPLES_PER_PROMPT
    # With one sample, so that --samples_per_prompt can't be another number.
    one_file_per_prompt = True

    def read_prompts(self, path: epath.Path | None, config: ConfigDict) -> list[Prompt]:
        """Read GenEval 2's prompts from the user's copy, as in `PromptedSuite`."""
        if path is None:
            raise UserError("--prompts is missing: give your copy of geneval2_data.jsonl")
        return read_prompts(path)

    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """Return the path of a prompt's image."""
        return out / f"{prompt.name}.png"

    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """Write the image of a prompt."""
        save_png(self.image_path(out, prompt, 0), images[0])

    def run(self, values: Mapping[str, Any]) -> None:
        """Generate images with --make, otherwise report the scores of a results file."""
        if choose_mode(values, ("make", "results")) == "results":
            results, prompts = required_path("results"), read_prompts(required_path("prompts"))
            score_geneval2(results, prompts, output_file("out", ".json"))
            return
        request = self.request(values)
        prompts = self.make_images(request)
        if jax.process_index() == 0:
            out = epath.Path(request.out).absolute()
            paths = {prompt.text: str(self.image_path(out, prompt, 0)) for prompt in prompts}
            write_json(request.out / IMAGES, paths)
            say(f"wrote {IMAGES}, which the official scorer takes as --image_filepath_data")


def score_geneval2(
    results: epath.Path, prompts: list[Prompt], out: epath.Path | None
) -> dict[str, Any]:
    """Compute, print and write the Soft-TIFA scores of a results file.

    Args:
      results: the list of scores that the official scorer wrote.
      prompts: those that it was given.
      out: FILE.json for the scores.

    Returns:
      The content of `out`.

    Raises:
      UserError: the results aren't those of these prompts.
    """
    scores = soft_tifa(prompts, read_answers(results, prompts))
    content = {"suite": "geneval2", "results": str(results), **dataclasses.asdict(scores)}
    print(as_table(scores))
    if out:
        write_json(out, content)
    return content
