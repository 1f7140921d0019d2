"""GenEval's prompts and their metadata: the rules that their images are judged by."""

import json
from typing import Any

from etils import epath

from tp_jax.evals.geneval.rules import COLOURS, RELATIONS
from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import check_fields, read_lines
from tp_jax.messages.errors import UserError

# tag -> number of prompts in the published benchmark, 553 in total
PROMPTS_PER_TAG = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94,
                   "position": 100, "color_attr": 100}  # fmt: skip


def read_prompts(path: epath.Path) -> list[Prompt]:
    """Read the prompts of `evaluation_metadata.jsonl`, in file order.

    Raises:
      UserError: the file doesn't exist, or a line isn't valid GenEval metadata.
    """
    prompts, seen = [], {}
    for where, content in read_lines(path):
        check_metadata(where, content)
        before = seen.setdefault(metadata_key(content), where)
        if before != where:
            raise UserError(f"{where}: repeats {before.rpartition(', ')[2]}: remove one of them")
        index = len(prompts)
        prompts.append(Prompt(index, f"{index:05d}", content["prompt"], content))
    if not prompts:
        raise UserError(f"{path}: contains no prompts: give GenEval's evaluation_metadata.jsonl")
    return prompts


def check_metadata(where: str, content: dict[str, Any]) -> None:
    """Raise a UserError unless `content` is valid GenEval metadata of one prompt.

    Args:
      where: file and line, for messages.
      content: the metadata.
    """
    check_fields(where, content, {"tag": str, "include": list, "prompt": str})
    if content["tag"] not in PROMPTS_PER_TAG:
        raise UserError(
            f"{where}: tag {content['tag']!r} must be one of {', '.join(PROMPTS_PER_TAG)}"
        )
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
        raise UserError(f"{where} must be an object with class and count")
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
            f"{where}: position={clause['position']!r} must be [relation, index]: a relation of "
            f"{', '.join(RELATIONS)}, and the index of an earlier include"
        )


def metadata_key(metadata: dict[str, Any]) -> str:
    """Return a string that is equal for equal metadata, regardless of the order of its fields."""
    return json.dumps(metadata, sort_keys=True)
