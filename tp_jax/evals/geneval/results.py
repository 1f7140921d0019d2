"""GenEval's verdicts on images, and the scores computed from them.

The verdicts can come from this package or from the official evaluator.

Source: djghosh13/geneval (Ghosh et al. 2023, arXiv:2310.11513).
"""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.evals.geneval.layout import find_images
from tp_jax.evals.geneval.prompts import PROMPTS_PER_TAG, check_metadata, metadata_key
from tp_jax.evals.geneval.rules import Detection, Objects, judge, select
from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import appender, check_fields, read_lines, repair_last_line
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.pictures.reading import read_rgb

RESULT_FIELDS = {"filename": str, "tag": str, "prompt": str, "correct": bool, "reason": str,
                 "metadata": str, "details": str}  # fmt: skip

# uint8 image [H, W, 3] -> objects of each class with any score, in any order
Detector = Callable[[np.ndarray], Objects]
# (uint8 image [H, W, 3], objects, their class) -> colour of each object, one of COLOURS
ColourClassifier = Callable[[np.ndarray, Sequence[Detection], str], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class GenEvalScores:
    """GenEval's scores, as shares from 0 to 1.

    Attributes:
      tags: per tag, the share of correct images.
      overall: unweighted mean over the tags.
      prompts_solved: share of prompts with at least one correct image.
      prompts, images: number of prompts and images.
    """

    tags: dict[str, float]
    overall: float
    prompts_solved: float
    prompts: int
    images: int


def check_complete(where: str, images: Counter[str], prompts: Sequence[Prompt] | None) -> None:
    """Check that every prompt has images, and all prompts equally many.

    Args:
      where: file or folder, for messages.
      images: number of images per prompt, by `metadata_key` of its metadata.
      prompts: the expected prompts; None expects GenEval's published number of prompts per tag.

    Raises:
      UserError: a prompt is missing or unknown, or has fewer images than another.
    """
    if prompts is None:
        tags = Counter(json.loads(key)["tag"] for key in images)
        wrong = [f"{tag} {tags[tag]} of {PROMPTS_PER_TAG[tag]}" for tag in PROMPTS_PER_TAG
                 if tags[tag] != PROMPTS_PER_TAG[tag]]  # fmt: skip
        if wrong:
            raise UserError(
                f"{where}: prompts are missing or belong to another version of GenEval "
                f"({', '.join(wrong)}): name your version with --prompts"
            )
    else:
        wanted = {metadata_key(prompt.metadata): prompt for prompt in prompts}
        for other in images.keys() - wanted.keys():
            text = json.loads(other)["prompt"]
            raise UserError(
                f"{where}: {text!r} with its metadata isn't one of the expected prompts"
            )
        missing = [prompt for key, prompt in wanted.items() if key not in images]
        if missing:
            raise UserError(
                f"{where}: {len(missing)} of {len(wanted)} prompts are missing; the first is "
                f"{missing[0].name}, {missing[0].text!r}"
            )
    most = max(images.values())
    for key, count in images.items():
        if count < most:
            text = json.loads(key)["prompt"]
            raise UserError(f"{where}: {text!r} has {count} images, but another prompt has {most}")


def read_results(path: epath.Path, prompts: Sequence[Prompt] | None = None) -> GenEvalScores:
    """Score the verdicts in a file written by the official evaluator or by `score_images`.

    Args:
      path: FILE.jsonl.
      prompts: the expected prompts; None expects GenEval's published number of prompts per tag.

    Raises:
      UserError: a line is invalid, repeated or of an unknown prompt, or images are missing.
    """
    return score_lines(str(path), read_lines(path), prompts)


def score_lines(
    name: str,
    found: Sequence[tuple[str, dict[str, Any]]],
    prompts: Sequence[Prompt] | None = None,
) -> GenEvalScores:
    """Score results that were read already.

    Args:
      name: name of the results file, for messages.
      found: (file and line for messages, content) of each line.
      prompts: as in `read_results`.
    """
    lines: dict[str, str] = {}
    right: dict[str, list[bool]] = defaultdict(list)  # verdicts by `metadata_key` of the prompt
    for where, line in found:
        metadata = _check_result(where, line)
        before = lines.setdefault(line["filename"], where)
        if before != where:
            raise UserError(f"{where}: image {line['filename']} is already in {before}")
        right[metadata_key(metadata)].append(line["correct"])
    if not right:
        raise UserError(f"{name}: contains no results")
    check_complete(name, Counter({key: len(images) for key, images in right.items()}), prompts)
    by_tag = defaultdict(list)
    for key, images in right.items():
        by_tag[json.loads(key)["tag"]] += images
    tags = {tag: float(np.mean(by_tag[tag])) for tag in PROMPTS_PER_TAG if tag in by_tag}
    return GenEvalScores(
        tags=tags,
        overall=float(np.mean(list(tags.values()))),
        prompts_solved=float(np.mean([any(images) for images in right.values()])),
        prompts=len(right),
        images=len(lines),
    )


def _check_result(where: str, line: dict[str, Any]) -> dict[str, Any]:
    """Check one line of results and return the prompt's metadata in it."""
    check_fields(where, line, RESULT_FIELDS)
    try:
        metadata = json.loads(line["metadata"])
    except ValueError:
        raise UserError(f"{where}: metadata isn't valid JSON") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: metadata must be a JSON object")
    check_metadata(where, metadata)
    for name in ("tag", "prompt"):
        if line[name] != metadata[name]:
            raise UserError(
                f"{where}: {name} {line[name]!r} differs from {metadata[name]!r} in its metadata"
            )
    return metadata


def score_images(
    folder: epath.Path,
    detector: Detector,
    colours: ColourClassifier,
    out: epath.Path,
    prompts: Sequence[Prompt] | None = None,
) -> GenEvalScores:
    """Judge every image of a folder with GenEval's layout, and write the verdicts to `out`.

    Verdicts that `out` already contains are kept, so that an interrupted run resumes.

    Args:
      folder: the images.
      detector: finds the objects in an image.
      colours: classifies the colours of objects.
      out: FILE.jsonl, in the official evaluator's format; only the wording of `reason` differs.
      prompts: the expected prompts; None expects GenEval's published number of prompts per tag.

    Raises:
      UserError: prompts or images are missing, or `out` contains verdicts on other images.
    """
    images = find_images(folder)
    check_complete(str(folder), Counter(metadata_key(metadata) for _, metadata in images), prompts)
    done = _already_judged(out, dict(images))
    with appender(out) as add, progress_bar(len(images), "GenEval") as bar:
        bar.update(len(done))
        for path, metadata in images:
            if str(path) not in done:
                add(_judge_image(path, metadata, detector, colours))
                bar.update()
    return read_results(out, prompts)


def _already_judged(out: epath.Path, images: dict[epath.Path, dict[str, Any]]) -> set[str]:
    """Return the image files that `out` has verdicts on; check that these are still valid."""
    repair_last_line(out)
    known, done = {str(path): metadata for path, metadata in images.items()}, set()
    for where, line in read_lines(out) if out.exists() else []:
        metadata = _check_result(where, line)
        if known.get(line["filename"]) != metadata:
            raise UserError(
                f"{where}: {line['filename']} isn't an image of this folder and prompt: delete "
                f"{out} or name another file"
            )
        done.add(line["filename"])
    judged = out.stat().mtime if done else 0
    for path in images:
        if str(path) in done and path.stat().mtime > judged:
            raise UserError(
                f"{path} is newer than its verdict in {out}: delete {out} to judge all images again"
            )
    return done


def _judge_image(
    path: epath.Path, metadata: dict[str, Any], detector: Detector, colours: ColourClassifier
) -> dict[str, Any]:
    image = read_rgb(path, upright=True)
    objects = select(detector(image), metadata["tag"])
    correct, reason = judge(objects, metadata, lambda group, name: colours(image, group, name))
    boxes = {
        name: [[*map(float, found.box), float(found.score)] for found in group]
        for name, group in objects.items()
    }
    return {
        "filename": str(path),
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
        "correct": correct,
        "reason": reason,
        "metadata": json.dumps(metadata),
        "details": json.dumps(boxes),
    }


def as_table(columns: dict[str, dict[str, Any]]) -> str:
    """Return GenEval's scores in percent: one line per tag, one column per set of images."""
    names = list(columns)
    lines = [f"{'':16}" + "".join(f"{name:>10}" for name in names)]
    for tag in (*PROMPTS_PER_TAG, "overall"):
        values = [
            fields["overall"] if tag == "overall" else fields["tags"].get(tag)
            for fields in columns.values()
        ]
        texts = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        lines.append(f"{tag:16}" + "".join(f"{text:>10}" for text in texts))
    lines.append(f"{'images':16}" + "".join(f"{f['images']:>10}" for f in columns.values()))
    return "\n".join(lines)
