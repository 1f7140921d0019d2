"""GenEval: verdicts on images, and scores of verdicts, ours or the official evaluator's.

Source: djghosh13/geneval (Ghosh et al. 2023, arXiv:2310.11513).
"""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.evals.geneval.prompts import PROMPTS, check_metadata, find_images, key
from tp_jax.evals.geneval.rules import Detection, Objects, judge, select
from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import appender, check_fields, read_lines, repair_last_line
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.pictures.reading import read_rgb

RESULT_FIELDS = {"filename": str, "tag": str, "prompt": str, "correct": bool, "reason": str,
                 "metadata": str, "details": str}  # fmt: skip

# uint8 image [H, W, 3] -> the objects of each class, sure or not, in any order
Detector = Callable[[np.ndarray], Objects]
# (uint8 image [H, W, 3], objects, their class) -> the colour of each, one of COLOURS
ColourClassifier = Callable[[np.ndarray, Sequence[Detection], str], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class GenEvalScores:
    """Shares of 0 to 1.

    Attributes:
      tags: share of images that are right, of each tag.
      overall: the tags' mean, each counting the same.
      prompts_solved: share of prompts with one right image or more.
      prompts, images: how many.
    """

    tags: dict[str, float]
    overall: float
    prompts_solved: float
    prompts: int
    images: int


def check_whole(where: str, images: Counter[str], prompts: Sequence[Prompt] | None) -> None:
    """Checks that nothing is missing.

    Args:
      where: for messages.
      images: how many images each prompt has, by `key` of its metadata.
      prompts: what there must be; by default as many of each tag as GenEval has.

    Raises:
      UserError: a prompt is missing, or is none of those, or has fewer images than another.
    """
    if prompts is None:
        tags = Counter(json.loads(one)["tag"] for one in images)
        wrong = [f"{tag} {tags[tag]} of {PROMPTS[tag]}" for tag in PROMPTS
                 if tags[tag] != PROMPTS[tag]]  # fmt: skip
        if wrong:
            raise UserError(
                f"{where}: prompts are missing, or another version's ({', '.join(wrong)})"
            )
    else:
        wanted = {key(prompt.metadata): prompt for prompt in prompts}
        for other in images.keys() - wanted.keys():
            text = json.loads(other)["prompt"]
            raise UserError(f"{where}: {text!r} with its metadata is none of the prompts given")
        missing = [prompt for one, prompt in wanted.items() if one not in images]
        if missing:
            raise UserError(
                f"{where}: {len(missing)} of {len(wanted)} prompts are missing; the first is "
                f"{missing[0].name}, {missing[0].text!r}"
            )
    most = max(images.values())
    for one, count in images.items():
        if count < most:
            text = json.loads(one)["prompt"]
            raise UserError(f"{where}: {text!r} has {count} images, another prompt {most}")


def read_results(path: epath.Path, prompts: Sequence[Prompt] | None = None) -> GenEvalScores:
    """Scores from the file that the official evaluator, or `score_images`, writes.

    Args:
      prompts: what must have been drawn; by default as many of each tag as GenEval has.

    Raises:
      UserError: a line is damaged, double or of no known prompt, or images are missing.
    """
    return score_lines(str(path), read_lines(path), prompts)


def score_lines(
    name: str,
    found: Sequence[tuple[str, dict[str, Any]]],
    prompts: Sequence[Prompt] | None = None,
) -> GenEvalScores:
    """As `read_results`, of lines read already, each with its place in the file `name`."""
    lines: dict[str, str] = {}
    right: dict[str, list[bool]] = defaultdict(list)  # of each image, by `key` of its prompt
    for where, line in found:
        metadata = _check_result(where, line)
        before = lines.setdefault(line["filename"], where)
        if before != where:
            raise UserError(f"{where}: image {line['filename']} is in {before} already")
        right[key(metadata)].append(line["correct"])
    if not right:
        raise UserError(f"{name}: has no results")
    check_whole(name, Counter({one: len(images) for one, images in right.items()}), prompts)
    by_tag = defaultdict(list)
    for one, images in right.items():
        by_tag[json.loads(one)["tag"]] += images
    tags = {tag: float(np.mean(by_tag[tag])) for tag in PROMPTS if tag in by_tag}
    return GenEvalScores(
        tags=tags,
        overall=float(np.mean(list(tags.values()))),
        prompts_solved=float(np.mean([any(images) for images in right.values()])),
        prompts=len(right),
        images=len(lines),
    )


def _check_result(where: str, line: dict[str, Any]) -> dict[str, Any]:
    """The metadata in a line of results, once that is found whole."""
    check_fields(where, line, RESULT_FIELDS)
    try:
        metadata = json.loads(line["metadata"])
    except ValueError:
        raise UserError(f"{where}: metadata is no JSON") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: metadata must be an object")
    check_metadata(where, metadata)
    for name in ("tag", "prompt"):
        if line[name] != metadata[name]:
            raise UserError(f"{where}: {name} {line[name]!r} isn't its metadata's")
    return metadata


def score_images(
    folder: epath.Path,
    detector: Detector,
    colours: ColourClassifier,
    out: epath.Path,
    prompts: Sequence[Prompt] | None = None,
) -> GenEvalScores:
    """Judges every image of a folder laid out for GenEval, and writes its results to `out`.

    Lines that are there already are kept, so that a run goes on where it was stopped.

    Args:
      out: FILE.jsonl, as the official evaluator writes it but for the wording of `reason`.
      prompts: what must have been drawn; by default as many of each tag as GenEval has.

    Raises:
      UserError: prompts or images are missing, or `out` holds results of other images.
    """
    images = find_images(folder)
    check_whole(str(folder), Counter(key(metadata) for _, metadata in images), prompts)
    done = _results_so_far(out, dict(images))
    with appender(out) as add, progress_bar(len(images), "GenEval") as bar:
        bar.update(len(done))
        for path, metadata in images:
            if str(path) not in done:
                add(_judge_image(path, metadata, detector, colours))
                bar.update()
    return read_results(out, prompts)


def _results_so_far(out: epath.Path, images: dict[epath.Path, dict[str, Any]]) -> set[str]:
    """Files that `out` has whole lines of, of the images as they are."""
    repair_last_line(out)
    known, done = {str(path): metadata for path, metadata in images.items()}, set()
    for where, line in read_lines(out) if out.exists() else []:
        metadata = _check_result(where, line)
        if known.get(line["filename"]) != metadata:
            raise UserError(
                f"{where}: {line['filename']} is no image of this folder and prompt; delete {out} "
                f"or name another file"
            )
        done.add(line["filename"])
    judged = out.stat().mtime if done else 0
    for path in images:
        if str(path) in done and path.stat().mtime > judged:
            raise UserError(f"{path} was drawn after its verdict in {out}: delete {out}")
    return done


def _judge_image(
    path: epath.Path, metadata: dict[str, Any], detector: Detector, colours: ColourClassifier
) -> dict[str, Any]:
    image = read_rgb(path, upright=True)
    objects = select(detector(image), metadata["tag"])
    correct, reason = judge(objects, metadata, lambda group, name: colours(image, group, name))
    boxes = {
        name: [[*map(float, one.box), float(one.score)] for one in group]
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
    """GenEval's scores in percent, a line a tag and a column for each set of images."""
    names = list(columns)
    lines = [f"{'':16}" + "".join(f"{name:>10}" for name in names)]
    for tag in (*PROMPTS, "overall"):
        values = [
            fields["overall"] if tag == "overall" else fields["tags"].get(tag)
            for fields in columns.values()
        ]
        texts = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        lines.append(f"{tag:16}" + "".join(f"{text:>10}" for text in texts))
    lines.append(f"{'images':16}" + "".join(f"{f['images']:>10}" for f in columns.values()))
    return "\n".join(lines)
