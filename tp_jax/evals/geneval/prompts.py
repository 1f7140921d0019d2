"""GenEval's prompts, and its images where the evaluator looks for them."""

import json
import re
from typing import Any

from etils import epath

from tp_jax.evals.geneval.rules import COLOURS, RELATIONS
from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import check_fields, read_lines, read_text
from tp_jax.messages.errors import UserError

# tag -> prompts in the published benchmark, 553 in all
PROMPTS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100,
           "color_attr": 100}  # fmt: skip


def read_prompts(path: epath.Path) -> list[Prompt]:
    """The prompts of `evaluation_metadata.jsonl`, in its order.

    Raises:
      UserError: the file isn't there, or a line of it isn't as GenEval's are.
    """
    prompts, seen = [], {}
    for where, content in read_lines(path):
        check_metadata(where, content)
        before = seen.setdefault(key(content), where)
        if before != where:
            raise UserError(f"{where}: repeats {before.rpartition(', ')[2]}")
        index = len(prompts)
        prompts.append(Prompt(index, f"{index:05d}", content["prompt"], content))
    if not prompts:
        raise UserError(f"{path}: has no prompts")
    return prompts


def check_metadata(where: str, content: dict[str, Any]) -> None:
    """Raises UserError unless `content` is one line of GenEval's metadata."""
    check_fields(where, content, {"tag": str, "include": list, "prompt": str})
    if content["tag"] not in PROMPTS:
        raise UserError(f"{where}: tag {content['tag']!r} must be one of {', '.join(PROMPTS)}")
    if not content["prompt"].strip():
        raise UserError(f"{where}: the prompt is empty")
    if not isinstance(content.get("exclude", []), list):
        raise UserError(f"{where}: exclude must be a list")
    for part, number, clause in [
        *(("include", i, clause) for i, clause in enumerate(content["include"])),
        *(("exclude", i, clause) for i, clause in enumerate(content.get("exclude", []))),
    ]:
        _check_clause(f"{where}: {part}[{number}]", clause, number)


def _check_clause(where: str, clause: Any, number: int) -> None:
    if not isinstance(clause, dict):
        raise UserError(f"{where} must be an object of class and count")
    check_fields(where, clause, {"class": str, "count": int})
    if clause["count"] < 1:
        raise UserError(f"{where}: count={clause['count']} must be 1 or more")
    if clause.get("color", COLOURS[0]) not in COLOURS:
        raise UserError(f"{where}: color {clause['color']!r} must be one of {', '.join(COLOURS)}")
    if "position" in clause:
        match clause["position"]:
            case [relation, int(target)] if relation in RELATIONS and 0 <= target < number:
                return
        raise UserError(
            f"{where}: position={clause['position']!r} must be [one of {', '.join(RELATIONS)}; "
            f"the index of an include before it]"
        )


def key(metadata: dict[str, Any]) -> str:
    """One string for equal metadata, whatever the order of its fields."""
    return json.dumps(metadata, sort_keys=True)


def image_path(out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
    """Where the evaluator looks for image `sample`, from 0, of a prompt."""
    return out / prompt.name / "samples" / f"{sample:04d}.png"


def write_metadata(out: epath.Path, prompt: Prompt) -> None:
    """Writes the line that the evaluator judges a prompt's images by."""
    path = out / prompt.name / "metadata.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(prompt.metadata))


def find_images(folder: epath.Path) -> list[tuple[epath.Path, dict[str, Any]]]:
    """Each image of `folder/DIGITS/samples/DIGITS.png` with its prompt's metadata, in order.

    Raises:
      UserError: there are none, or a prompt has no metadata or no images.
    """
    folders = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    if not folders:
        raise UserError(f"{folder}: has no folders 00000, 00001, … of images")
    found = []
    for path in sorted(folders):
        file = path / "metadata.jsonl"
        try:
            metadata = json.loads(read_text(file))
        except ValueError:
            raise UserError(f"{file}: isn't one JSON object") from None
        if not isinstance(metadata, dict):
            raise UserError(f"{file}: isn't one JSON object")
        check_metadata(str(file), metadata)
        samples = path / "samples"
        files = sorted(samples.iterdir()) if samples.is_dir() else []
        images = [(file, metadata) for file in files if re.fullmatch(r"\d+\.png", file.name)]
        if not images:
            raise UserError(f"{samples}: has no images 0000.png, 0001.png, …")
        found += images
    return found
