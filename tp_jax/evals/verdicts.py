"""Scores of benchmarks of prompts: of images drawn here, and of the official scorers' results."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.dpg import questions as dpg
from tp_jax.evals.dpg import results as dpg_results
from tp_jax.evals.geneval import prompts as geneval
from tp_jax.evals.geneval import results as geneval_results
from tp_jax.evals.prompted import description_path
from tp_jax.evals.shapes import suite as shapes
from tp_jax.files.atomic import write_json
from tp_jax.files.jsonl import read_json, read_lines
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.pictures.galleries import make_captioned
from tp_jax.pictures.grids import save_png

# Of the scores of Shapes.
PARTS = ("overall", "seen", "unseen")


def score_shapes(folder: epath.Path, out: epath.Path) -> dict[str, Any]:
    """Scores drawn Shapes: `results.jsonl`, `scores.json` and `gallery.png` in a folder.

    Raises:
      UserError: images are missing, or aren't of these prompts.
    """
    images = geneval.find_images(folder)
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


def _read_image(path: str) -> np.ndarray:
    with epath.Path(path).open("rb") as file, Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


# Images of each skill that a gallery shows.
SHOWN = 8


def _gallery(results: epath.Path) -> np.ndarray:
    """Images of every skill with prompt and verdict."""
    lines = [line for _, line in read_lines(results)]
    chosen = []
    for tag in geneval.PROMPTS:
        of_tag = [line for line in lines if line["tag"] == tag]
        places = np.linspace(0, len(of_tag) - 1, min(SHOWN, len(of_tag))).astype(int)
        chosen += [of_tag[i] for i in places]
    images = [_read_image(line["filename"]) for line in chosen]
    return make_captioned(
        np.stack(images),
        [line["prompt"] for line in chosen],
        [line["correct"] for line in chosen],
        columns=SHOWN,
    )


def as_table(columns: dict[str, dict[str, Any]]) -> str:
    """GenEval's scores in percent, a line a tag and a column for each set of images."""
    names = list(columns)
    lines = [f"{'':16}" + "".join(f"{name:>10}" for name in names)]
    for tag in (*geneval.PROMPTS, "overall"):
        values = [
            fields["overall"] if tag == "overall" else fields["tags"].get(tag)
            for fields in columns.values()
        ]
        texts = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        lines.append(f"{tag:16}" + "".join(f"{text:>10}" for text in texts))
    lines.append(f"{'images':16}" + "".join(f"{f['images']:>10}" for f in columns.values()))
    return "\n".join(lines)


def score_geneval(
    results: epath.Path | None,
    prompts: epath.Path | None,
    out: epath.Path | None,
    *,
    samples: epath.Path | None = None,
    detector: epath.Path | None = None,
    clip: epath.Path | None = None,
) -> dict[str, Any]:
    """GenEval's scores of a file of results, or of a folder of images judged here.

    Args:
      results: of the official evaluator; or, with `samples`, where to write them.
      prompts: the user's copy; None holds results to the published counts.
      samples, detector, clip: folders of images, of Mask2Former's weights and of CLIP's.

    Raises:
      UserError: anything isn't there, or is of another version of the benchmark.
    """
    wanted = geneval.read_prompts(prompts) if prompts else None
    if samples:
        from tp_jax.evals.geneval.detection import load_colours, load_detector

        scores = geneval_results.score_images(
            samples, load_detector(detector), load_colours(clip), results, wanted
        )
    else:
        scores = geneval_results.read_results(results, wanted)
    content = {"suite": "geneval", "results": str(results), **dataclasses.asdict(scores)}
    print(as_table({"geneval": content}))
    if out:
        write_json(out, content)
    return content


def score_dpg(
    results: epath.Path, questions: epath.Path | None, out: epath.Path | None
) -> dict[str, Any]:
    """DPG-Bench's scores, official and fixed, of a file of results.

    Raises:
      UserError: anything isn't there, or is of another version of the benchmark.
    """
    found = dpg_results.read_results(results, dpg.read_questions(questions) if questions else None)
    content = {"suite": "dpg", "results": str(results), **dataclasses.asdict(found)}
    print(dpg_table(found))
    if out:
        write_json(out, content)
    return content


def dpg_table(found: dpg_results.Results) -> str:
    """Both scores: overall, by broad category and by detailed one."""
    official, fixed = found.official, found.fixed
    lines = [f"{'':40}{'official':>10}{'fixed':>10}"]

    def line(name, read):
        values = [None if scores is None else read(scores) for scores in (official, fixed)]
        texts = ["-" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"{name:40}" + "".join(f"{text:>10}" for text in texts))

    line("overall", lambda scores: scores.score)
    for field in ("level1", "level2"):
        for name in getattr(official, field):
            line(name, lambda scores, field=field, name=name: getattr(scores, field).get(name))
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])
