"""DPG-Bench: images for its official scorer, and scores of its results."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from tp_jax.cli.flags import required
from tp_jax.evals.dpg import results as dpg_results
from tp_jax.evals.dpg.questions import grid, image_path, read_prompts, read_questions
from tp_jax.evals.dpg.score import Scores
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.prompted import PromptedSuite
from tp_jax.evals.suite import choose_mode, path_of
from tp_jax.files.atomic import write_json
from tp_jax.messages.errors import UserError
from tp_jax.pictures.grids import save_png


class DpgSuite(PromptedSuite):
    """Questions about images of long prompts."""

    name = "dpg"
    samples = 4
    joined = True
    square = True

    def read_prompts(self, path: epath.Path | None) -> list[Prompt]:
        """As of `PromptedSuite`."""
        if path is None:
            raise UserError("--prompts is missing: name your copy of the prompts of dpg")
        return read_prompts(path)

    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """As of `PromptedSuite`."""
        return image_path(out, prompt)

    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """A grid of the four samples."""
        save_png(image_path(out, prompt), grid(images))

    def run(self, values: Mapping[str, Any]) -> None:
        """Draws with --make, else reports results."""
        if choose_mode(values, ("make", "results")) == "make":
            self.draw(self.request(values))
            return
        results = epath.Path(required("results"))
        score_dpg(results, path_of(values, "questions"), path_of(values, "out"))


def score_dpg(
    results: epath.Path, questions: epath.Path | None, out: epath.Path | None
) -> dict[str, Any]:
    """DPG-Bench's scores, official and fixed, of a file of results.

    Raises:
      UserError: anything isn't there, or is of another version of the benchmark.
    """
    found = dpg_results.read_results(results, read_questions(questions) if questions else None)
    content = {"suite": "dpg", "results": str(results), **dataclasses.asdict(found)}
    print(dpg_table(found))
    if out:
        write_json(out, content)
    return content


def dpg_table(found: dpg_results.Results) -> str:
    """Both scores: overall, by broad category and by detailed one."""
    official, fixed = found.official, found.fixed
    lines = [f"{'':40}{'official':>10}{'fixed':>10}"]

    def line(name: str, read: Callable[[Scores], float | None]) -> None:
        values = [None if scores is None else read(scores) for scores in (official, fixed)]
        texts = ["-" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"{name:40}" + "".join(f"{text:>10}" for text in texts))

    line("overall", lambda scores: scores.score)
    for field in ("level1", "level2"):
        for name in getattr(official, field):
            line(name, lambda scores, field=field, name=name: getattr(scores, field).get(name))
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])
