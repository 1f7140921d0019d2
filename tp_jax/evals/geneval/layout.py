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
from tp_jax.files.atomic import write_text
from tp_jax.files.folders import describe_files
from tp_jax.files.jsonl import read_json, read_text
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.sampling.description import described_files, path_beside

METADATA = "metadata.jsonl"


def image_path(out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
    """Return the path where the evaluator expects image number `sample` (from 0) of a prompt."""
    return out / prompt.name / "samples" / f"{sample:04d}.png"


def write_metadata(out: epath.Path, prompt: Prompt) -> None:
    """Write `metadata.jsonl`, from which the evaluator reads what the prompt's images must show."""
    write_text(out / prompt.name / METADATA, json.dumps(prompt.metadata))


def find_images(folder: epath.Path) -> list[tuple[epath.Path, dict[str, Any]]]:
    """Return the images `folder/DIGITS/samples/DIGITS.png` with their prompts' metadata, sorted.

    If a description lists the images, others are left out. What is left out is said.

    Raises:
      UserError: there are no images, a prompt has no metadata or no images, or an image that the
        description lists is missing.
    """
    inside = _visible(folder)
    folders = [path for path in inside if path.name.isdigit() and path.is_dir()]
    if not folders:
        raise UserError(
            f"{folder}: has no folders 00000, 00001, …: give a folder that --make wrote"
        )
    found = []
    for path in sorted(folders):
        file = path / METADATA
        try:
            metadata = json.loads(read_text(file))
        except ValueError:
            raise UserError(f"{file}: must be one JSON object") from None
        if not isinstance(metadata, dict):
            raise UserError(f"{file}: must be one JSON object")
        check_metadata(str(file), metadata)
        samples = path / "samples"
        files = _visible(samples)
        images = [(file, metadata) for file in files if re.fullmatch(r"\d+\.png", file.name)]
        if not images:
            raise UserError(f"{samples}: has no images 0000.png, 0001.png, …: run --make again")
        found += images
        # GenEval's own generator writes a grid next to the metadata.
        inside += [*files, *(file for file in _visible(path) if file.name not in _BESIDE)]
    found = _described(folder, found)
    taken = {*folders, *(file for file, _ in found)}
    rest = describe_files(file for file in inside if file not in taken)
    say(f"{folder}: {len(found)} images{'; left out: ' if rest else ''}{rest}")
    return found


_BESIDE = (METADATA, "samples", "grid.png")
Found = list[tuple[epath.Path, dict[str, Any]]]


def _described(folder: epath.Path, found: Found) -> Found:
    """Return the images that the folder's description lists; all if it doesn't list them."""
    path = path_beside(folder)
    listed = described_files(path)
    if listed is not None:
        wanted = {name for name in listed if name.endswith(".png")}
        found = [image for image in found if str(image[0].relative_to(folder)) in wanted]
        count = len(wanted)
    else:
        # Earlier versions wrote only the number of images.
        count = read_json(path).get("images", len(found)) if path.exists() else len(found)
    if len(found) != count:
        raise UserError(
            f"{folder} has {len(found)} of {count} images: run the command that generates them "
            f"again, and it resumes"
        )
    return found


def _visible(folder: epath.Path) -> list[epath.Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".")]
