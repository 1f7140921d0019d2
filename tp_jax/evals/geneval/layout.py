"""The folder layout in which GenEval's evaluator expects images.

OUT/00042/metadata.jsonl        rules of prompt 42
OUT/00042/samples/0000.png      its first image
"""

import json
import re
from typing import Any

from etils import epath

from tp_jax.evals.geneval.prompts import check_metadata
from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError


def image_path(out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
    """Return the path where the evaluator expects image number `sample` (from 0) of a prompt."""
    return out / prompt.name / "samples" / f"{sample:04d}.png"


def write_metadata(out: epath.Path, prompt: Prompt) -> None:
    """Write `metadata.jsonl`, from which the evaluator reads what the prompt's images must show."""
    path = out / prompt.name / "metadata.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(prompt.metadata))


def find_images(folder: epath.Path) -> list[tuple[epath.Path, dict[str, Any]]]:
    """Return the images `folder/DIGITS/samples/DIGITS.png` with their prompts' metadata, sorted.

    Raises:
      UserError: there are no images, or a prompt has no metadata or no images.
    """
    folders = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    if not folders:
        raise UserError(
            f"{folder}: has no folders 00000, 00001, …: give a folder that --make wrote"
        )
    found = []
    for path in sorted(folders):
        file = path / "metadata.jsonl"
        try:
            metadata = json.loads(read_text(file))
        except ValueError:
            raise UserError(f"{file}: must be one JSON object") from None
        if not isinstance(metadata, dict):
            raise UserError(f"{file}: must be one JSON object")
        check_metadata(str(file), metadata)
        samples = path / "samples"
        files = sorted(samples.iterdir()) if samples.is_dir() else []
        images = [(file, metadata) for file in files if re.fullmatch(r"\d+\.png", file.name)]
        if not images:
            raise UserError(f"{samples}: has no images 0000.png, 0001.png, …: run --make again")
        found += images
    return found
