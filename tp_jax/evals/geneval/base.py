"""Base class of suites that write their images in the layout that GenEval's evaluator reads."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from tp_jax.evals.geneval.layout import METADATA, image_path, write_metadata
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.prompted import PromptedSuite
from tp_jax.pictures.grids import save_png


class GenEvalLayoutSuite(PromptedSuite):
    """Writes images to `OUT/00042/samples/0000.png` and the rules to `OUT/00042/metadata.jsonl`."""

    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """Return the path that the evaluator reads, as in `PromptedSuite`."""
        return image_path(out, prompt, sample)

    def files(self, prompts: Sequence[Prompt], samples: int) -> list[str]:
        """Return the files of the images and of the prompts' metadata."""
        metadata = [f"{prompt.name}/{METADATA}" for prompt in prompts]
        return [*super().files(prompts, samples), *metadata]

    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """Write an image as PNG, and the prompt's metadata."""
        write_metadata(out, prompt)
        save_png(image_path(out, prompt, sample), images[0])
