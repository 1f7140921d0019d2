"""Base class of suites that write their images in the layout that GenEval's evaluator reads."""

import numpy as np
from etils import epath

from tp_jax.evals.geneval.layout import image_path, write_metadata
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.prompted import PromptedSuite
from tp_jax.pictures.grids import save_png


class GenEvalLayoutSuite(PromptedSuite):
    """Writes images to `OUT/00042/samples/0000.png` and the rules to `OUT/00042/metadata.jsonl`."""

    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """Return the path that the evaluator reads, as in `PromptedSuite`."""
        return image_path(out, prompt, sample)

    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """Write an image as PNG, and the prompt's metadata."""
        write_metadata(out, prompt)
        save_png(image_path(out, prompt, sample), images[0])
