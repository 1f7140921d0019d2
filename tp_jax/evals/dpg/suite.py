"""The DPG-Bench suite: generate images for the official scorer, and read its results."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax.cli.flags import output_file, required_output_file, required_path
from tp_jax.evals.dpg import results as dpg_results
from tp_jax.evals.dpg.command import SAMPLES_PER_PROMPT
from tp_jax.evals.dpg.grids import image_path, join_tiles
from tp_jax.evals.dpg.prompts import read_prompts
from tp_jax.evals.dpg.questions import answer_images, read_questions
from tp_jax.evals.dpg.score import Scores
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.prompted import PromptedSuite
from tp_jax.evals.suite import choose_mode, path_of
from tp_jax.files.atomic import write_json
from tp_jax.files.differences import first_difference
from tp_jax.files.folders import make_folder
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.pictures.grids import save_png


class DpgSuite(PromptedSuite):
    """Scores answers to questions about images of long prompts."""

    name = "dpg"
    samples_per_prompt = SAMPLES_PER_PROMPT
    one_file_per_prompt = True
    square_only = True

    def read_prompts(self, path: epath.Path | None, config: ConfigDict) -> list[Prompt]:
        """Read DPG-Bench's prompts from the user's copy, as in `PromptedSuite`."""
        if path is None:
            raise UserError("--prompts is missing: give your copy of DPG-Bench's prompts")
        return read_prompts(path)

    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """Return the path of a prompt's image grid, which all its samples share."""
        return image_path(out, prompt)

    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """Write the four samples of a prompt as one grid."""
        save_png(image_path(out, prompt), join_tiles(images))

    def run(self, values: Mapping[str, Any]) -> None:
        """Generate images with --make, otherwise report the scores of a results file."""
        if values["make"]:
            choose_mode(values, ("make", "vqa", "results"))
            self.make_images(self.request(values))
            return
        results, out, answering = required_path("results"), output_file("out", ".json"), None
        if values["vqa"]:
            results = required_output_file("results", ".jsonl")
            folders = {name: required_path(name) for name in ("samples", "vqa")}
            answering = AnswerRequest(**folders, batch_size=values["batch_size"])
        score_dpg(results, path_of(values, "questions"), out, answering)


@dataclasses.dataclass(frozen=True)
class AnswerRequest:
    """Images whose questions are answered here, and the model that answers them.

    Attributes:
      samples: folder of the images.
      vqa: folder with the model.
      batch_size: number of questions that the model is asked at once.
    """

    samples: epath.Path
    vqa: epath.Path
    batch_size: int = 8


def score_dpg(
    results: epath.Path,
    questions: epath.Path | None,
    out: epath.Path | None,
    answering: AnswerRequest | None = None,
) -> dict[str, Any]:
    """Read, print and write the official and the fixed scores of a results file.

    Args:
      results: file that `read_results` accepts; with `answering`, the file to write.
      questions: the user's dpg_bench.csv, if the scores need it.
      out: FILE.json for the scores.
      answering: images whose questions are answered here first; resumes if `results` exists.

    Returns:
      The content of `out`.

    Raises:
      UserError: a file doesn't exist or belongs to another version of the benchmark.
    """
    asked = read_questions(questions) if questions else None
    answered = {}
    if answering and asked:
        from tp_jax.evals.dpg.vqa import load_vqa

        vqa, answered = load_vqa(answering.vqa)
        answered |= {"samples": str(answering.samples.absolute())}
        _claim_answers(results, answered)
        answer_images(answering.samples, asked, vqa, results, answering.batch_size)
    found = dpg_results.read_results(results, asked)
    if answered:
        note = (
            f"answered by {answered['vqa']}, not by the official mPLUG-large: compare only with "
            f"scores from the same model"
        )
        found = dataclasses.replace(found, notes=(*found.notes, note))
    content = {"suite": "dpg", "results": str(results), **answered, **dataclasses.asdict(found)}
    print(as_table(found))
    if out:
        write_json(out, content)
    return content


def _claim_answers(results: epath.Path, answered: Mapping[str, Any]) -> None:
    """Write beside the answers where they come from, unless others are there already.

    Raises:
      UserError: the file has answers of another model, or to questions about other images.
    """
    path = results.with_name(f"{results.name}.source.json")
    if results.exists():
        remedy = "delete both files, or name another --results"
        changed = first_difference(read_json(path, remedy=remedy), answered)
        if changed:
            raise UserError(
                f"{results} has other answers: {changed.name} was {changed.old}, now "
                f"{changed.new}; {remedy}"
            )
    else:
        make_folder(results.parent, f"--results={results}")
        write_json(path, dict(answered))


def as_table(found: dpg_results.Results) -> str:
    """Return a table of both scores: overall, by broad category, and by detailed category."""
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
