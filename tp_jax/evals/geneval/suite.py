"""The GenEval suite: generate images for the official scorer, read its results, or score here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from tp_jax.cli.flags import output_file, required_path
from tp_jax.evals.geneval.base import GenEvalLayoutSuite
from tp_jax.evals.geneval.command import SAMPLES_PER_PROMPT
from tp_jax.evals.geneval.prompts import read_prompts
from tp_jax.evals.geneval.results import as_table, read_results, score_images
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.suite import choose_mode, path_of
from tp_jax.files.atomic import write_json
from tp_jax.messages.errors import UserError


class GenEvalSuite(GenEvalLayoutSuite):
    """Scores objects, their counts, colours and positions in images of short prompts."""

    name = "geneval"
    samples_per_prompt = SAMPLES_PER_PROMPT

    def read_prompts(self, path: epath.Path | None, config: ConfigDict) -> list[Prompt]:
        """Read GenEval's prompts from the user's copy, as in `PromptedSuite`."""
        if path is None:
            raise UserError("--prompts is missing: give your copy of evaluation_metadata.jsonl")
        return read_prompts(path)

    def run(self, values: Mapping[str, Any]) -> None:
        """Generate images with --make, otherwise report results, which --score computes first."""
        if values["make"]:
            choose_mode(values, ("make", "score", "results"))
            self.make_images(self.request(values))
            return
        results, images = required_path("results"), None
        if values["score"]:
            names = ("samples", "detector", "clip")
            images = JudgeRequest(**{name: required_path(name) for name in names})
        score_geneval(results, path_of(values, "prompts"), output_file("out", ".json"), images)


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """Images to judge here, and the networks that judge them.

    Attributes:
      samples: folder of the images.
      detector, clip: folders with Mask2Former's and CLIP's weights.
    """

    samples: epath.Path
    detector: epath.Path
    clip: epath.Path


def score_geneval(
    results: epath.Path,
    prompts: epath.Path | None,
    out: epath.Path | None,
    images: JudgeRequest | None = None,
) -> dict[str, Any]:
    """Compute, print and write GenEval's scores of a results file or of images judged here.

    Args:
      results: file written by the official evaluator; with `images`, the file to write.
      prompts: the user's copy of the prompts; None expects the published number per tag.
      out: FILE.json for the scores.
      images: images to judge here.

    Returns:
      The content of `out`.

    Raises:
      UserError: a file doesn't exist or belongs to another version of the benchmark.
    """
    wanted = read_prompts(prompts) if prompts else None
    if images:
        from tp_jax.evals.geneval.detection import load_colour_classifier, load_detector

        detector, colours = load_detector(images.detector), load_colour_classifier(images.clip)
        scores = score_images(images.samples, detector, colours, results, wanted)
    else:
        scores = read_results(results, wanted)
    content = {"suite": "geneval", "results": str(results), **dataclasses.asdict(scores)}
    print(as_table({"geneval": content}))
    if out:
        write_json(out, content)
    return content
