"""The ADM suite."""

import dataclasses
import importlib.metadata
from typing import Any

import jax
from etils import epath

import tp_jax
from tp_jax.evals.adm.features import check_protocol, load_extractor
from tp_jax.evals.adm.reference import (
    check_reference,
    complete,
    measure,
    read_reference,
    save_statistics,
)
from tp_jax.evals.adm.scores import Scores, compare
from tp_jax.files.atomic import make_folder, write_json
from tp_jax.messages.errors import UserError
from tp_jax.pictures.reading import open_images


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of a suite.

    Attributes:
      samples: FILE.npz or a folder of PNGs.
      reference: what to compare with; may be None where only statistics are saved.
      inception: a folder that `tp_jax.convert --kind=inception` wrote.
      protocol: "adm" or "pytorch-fid".
      out: FILE.json for the scores.
      save_statistics: FILE.npz, to be a reference later.
      num: images to take; all by default.
    """

    samples: epath.Path
    reference: epath.Path | None
    inception: epath.Path
    protocol: str = "adm"
    out: epath.Path | None = None
    save_statistics: epath.Path | None = None
    batch_size: int = 64
    num: int | None = None


PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")


def run(task: Task) -> Scores:
    """Scores a file or a folder of images; prints a table and writes what `task` asks for.

    Raises:
      UserError: anything that was asked for can't be had; all that can be checked is checked
        before the first image is read.
    """
    check_protocol(task.protocol)
    if not (task.reference or task.save_statistics):
        raise UserError("--reference is missing: name one, or --save_statistics=FILE.npz to make")
    samples = open_images(task.samples)
    count = samples.count if task.num is None else task.num
    if samples.count < 2:
        raise UserError(f"{task.samples} holds {samples.count} image: scores need 2 or more")
    if not 2 <= count <= samples.count:
        raise UserError(
            f"{count} images asked for, but {task.samples} holds {samples.count}: "
            f"choose 2 to {samples.count}"
        )
    reference = read_reference(task.reference) if task.reference else None
    for name, path in (("out", task.out), ("save_statistics", task.save_statistics)):
        _prepare_file(name, path)
    extractor = load_extractor(task.inception, task.protocol, task.batch_size)
    if reference:
        check_reference(reference, extractor, samples.size)

    batches = samples.batches(task.batch_size, count)
    statistics = measure(batches, count, extractor, "features of samples")
    if task.save_statistics and jax.process_index() == 0:
        save_statistics(task.save_statistics, statistics, extractor, samples.size)
    scores = compare(statistics, complete(reference, extractor) if reference else None, extractor)
    if jax.process_index() == 0:
        print(as_table(scores))
        if task.out:
            write_json(task.out, as_json(scores, task))
    return scores


def _prepare_file(name: str, path: epath.Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--{name}={path} is a folder: name a file")
    make_folder(path.parent, f"--{name}={path}")


def as_table(scores: Scores) -> str:
    """One line a score, then what they depend on."""
    fields = dataclasses.asdict(scores)
    notes = fields.pop("notes")
    lines = [f"{name:16}{_as_text(value)}" for name, value in fields.items()]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _as_text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)


def as_json(scores: Scores, task: Task) -> dict[str, Any]:
    """The scores, where the images came from, and the versions they were computed with."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {"tp_jax": tp_jax.__version__, "device": jax.devices()[0].device_kind}
    fields = {"suite": "adm", "samples": str(task.samples), **dataclasses.asdict(scores)}
    return {**fields, "versions": versions}
