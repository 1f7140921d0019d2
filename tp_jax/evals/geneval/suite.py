"""GenEval: images for its official scorer, its results, and a scorer of our own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from tp_jax.cli.flags import required
from tp_jax.evals.geneval.layout import GenEvalLayout
from tp_jax.evals.geneval.prompts import read_prompts
from tp_jax.evals.geneval.results import as_table, read_results, score_images
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.suite import choose_mode, path_of
from tp_jax.files.atomic import write_json
from tp_jax.messages.errors import UserError


class GenEvalSuite(GenEvalLayout):
    """Objects, their number, colours and places, found in images of prompts."""

    name = "geneval"
    samples = 4

    def read_prompts(self, path: epath.Path | None) -> list[Prompt]:
        """As of `PromptedSuite`."""
        if path is None:
            raise UserError("--prompts is missing: name your copy of the prompts of geneval")
        return read_prompts(path)

    def run(self, values: Mapping[str, Any]) -> None:
        """Draws with --make, else reports results, which --score makes first."""
        if values["make"]:
            choose_mode(values, ("make", "score", "results"))
            self.draw(self.request(values))
            return
        results, images = epath.Path(required("results")), None
        if values["score"]:
            names = ("samples", "detector", "clip")
            images = Images(**{name: epath.Path(required(name)) for name in names})
        score_geneval(results, path_of(values, "prompts"), path_of(values, "out"), images)


@dataclasses.dataclass(frozen=True)
class Images:
    """Images that are judged here.

    Attributes:
      samples: their folder.
      detector, clip: folders of Mask2Former's weights and of CLIP's.
    """

    samples: epath.Path
    detector: epath.Path
    clip: epath.Path


def score_geneval(
    results: epath.Path,
    prompts: epath.Path | None,
    out: epath.Path | None,
    images: Images | None = None,
) -> dict[str, Any]:
    """GenEval's scores of a file of results, or of a folder of images judged here.

    Args:
      results: of the official evaluator; or, with `images`, where to write them.
      prompts: the user's copy; None holds results to the published counts.
      images: to be judged here.

    Raises:
      UserError: anything isn't there, or is of another version of the benchmark.
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
