"""Suites whose images lie where GenEval's evaluator looks for them."""

import numpy as np
from etils import epath

from tp_jax.evals.geneval.prompts import image_path, write_metadata
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.prompted import PromptedSuite
from tp_jax.pictures.grids import save_png


class GenEvalLayout(PromptedSuite):
    """`OUT/00042/samples/0000.png`, and `OUT/00042/metadata.jsonl` that they are judged by."""

    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """As of `PromptedSuite`."""
        return image_path(out, prompt, sample)

    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """Writes a PNG, and the prompt's line of metadata."""
        write_metadata(out, prompt)
        save_png(image_path(out, prompt, sample), images[0])
