"""Descriptions of images on disk: what a file or folder holds, and for which request.

A request never mixes its images with those of another one: the description is written before the
first image, and the same request goes on where it stopped. It is `drawing.json` in a folder of
samples, and `OUT.drawing.json` next to an npz and next to a suite's folder, in which the suite's
scorer expects nothing but images.
"""

import dataclasses
import hashlib
from typing import Any

from etils import epath

from tp_jax.files.atomic import write_json
from tp_jax.files.differences import Difference, first_difference
from tp_jax.files.folders import can_resume, make_folder
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.parallel.processes import run_on_first
from tp_jax.pictures.reading import FILES
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.request import Request, sampler_fields
from tp_jax.workdir import integrity

# Fields of the request that don't change the images, or that `describe` replaces by what they
# refer to.
_NOT_DESCRIBED = (
    "out", "overwrite", "batch_size", "sampler_changes", "autoencoder", "text", "truncate",
    "allow_unchecked", "show_thinking",
)  # fmt: skip
# Fields that descriptions of earlier versions lack.
_ADDED = ("weights", FILES)


def describe(request: Request, loaded: Loaded, encoder: str | None) -> dict[str, Any]:
    """Return a JSON object with everything that determines the images.

    Args:
      request: the request.
      loaded: its model.
      encoder: identity of the text encoder; None for a model without one.
    """
    fields = {k: v for k, v in dataclasses.asdict(request).items() if k not in _NOT_DESCRIBED}
    if fields.get("halting_epsilon") is None:
        fields.pop("halting_epsilon", None)  # Descriptions of earlier versions lack it.
    return fields | {
        "workdir": str(request.workdir.absolute()),
        "checkpoint": loaded.train_step,
        "weights": weights_identity(request.workdir, loaded.train_step),
        "encoder": encoder,
        "sampler": sampler_fields(loaded, request.sampler_changes),
        "dtype": loaded.built.model.dtype,
        "autoencoder": loaded.codec.space.identity if loaded.codec else None,
    }


def weights_identity(workdir: epath.Path, train_step: int) -> str | None:
    """Return the SHA-256 of a checkpoint's checksums; None if it has no readable ones.

    It tells the checkpoints of two runs apart that were trained in the same workdir, one after the
    other.
    """
    if not integrity.is_verified(workdir, train_step):
        return None
    path = workdir / integrity.FOLDER / f"{train_step}.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changed_field(old: dict[str, Any], new: dict[str, Any]) -> Difference | None:
    """Return the first field of two descriptions that differs; None if they are the same."""
    unknown = {name for name in _ADDED if old.get(name) is None or new.get(name) is None}
    old, new = ({k: v for k, v in side.items() if k not in unknown} for side in (old, new))
    return first_difference(old, new)


def path_beside(out: epath.Path) -> epath.Path:
    """Return the path of the description of an npz, or of a folder for a scorer."""
    return out.with_name(f"{out.name}.drawing.json")


def described_files(path: epath.Path) -> list[str] | None:
    """Return the files that a description lists; None if it doesn't exist or lists none."""
    return _read(path).get(FILES) if path.exists() else None


def _read(path: epath.Path) -> dict[str, Any]:
    remedy = "delete it and the images that it describes"
    content = read_json(path, remedy=remedy)
    listed = content.get(FILES, [])
    if not (isinstance(listed, list) and all(isinstance(name, str) for name in listed)):
        raise UserError(f"{path} is damaged ({FILES!r} isn't a list of names); {remedy}")
    return content


def claim(
    out: epath.Path,
    path: epath.Path,
    description: dict[str, Any],
    *,
    overwrite: bool = False,
    also: tuple[str, ...] = (),
) -> None:
    """Make the folder of `out` and write the description, if no other images are there.

    All processes must call it; the first one does the work.

    Args:
      out: the npz file or the folder that the images are written to.
      path: the file of the description.
      description: all settings that decide the images. Its list `FILES` has all images, relative
        to the folder.
      overwrite: remove the images of another request if its description lists them, and an npz
        without a description. Other files are never removed.
      also: other files or folders that are written next to the images and belong to them.

    Raises:
      UserError: there are images of another request or an npz without a description, and
        `overwrite` isn't set; or a folder has files but no description.
    """
    folder = out.parent if out.suffix == ".npz" else out

    def act() -> None:
        old = _read(path) if path.exists() else None
        if old is not None:
            _make_room(out, folder, old, description, overwrite, also)
        elif folder == out:
            can_resume(out, path, f"--out={out}", "this command")
        elif out.exists() and not overwrite:
            raise UserError(
                f"--out={out} exists, but has no {path.name} that says how it was made: name "
                f"another file, or replace it with --overwrite"
            )
        elif out.exists():
            out.unlink()
        make_folder(folder, f"--out={out}")
        if old != description:
            write_json(path, description)

    run_on_first(act)


def _make_room(
    out: epath.Path,
    folder: epath.Path,
    old: dict[str, Any],
    description: dict[str, Any],
    overwrite: bool,
    also: tuple[str, ...],
) -> None:
    """Remove the images of another request, or raise a UserError."""
    changed, listed = changed_field(old, description), old.get(FILES)
    if not changed:
        return
    owned = [folder / name for name in (*(listed or ()), *also)]
    if listed is None:  # of an earlier version
        owned += list(out.iterdir()) if out.is_dir() else []
    found = [file for file in owned if file.exists()]
    if not found:
        return
    if not overwrite or listed is None:
        what = "images" if out.exists() else "parts"
        remedy = f"delete {out}" if listed is None else "replace its images with --overwrite"
        raise UserError(
            f"{out} has {what} of another run: {changed.name} was {_short(changed.old)}, now "
            f"{_short(changed.new)}; finish that run, choose another --out, or {remedy}"
        )
    for file in found:
        file.rmtree() if file.is_dir() else file.unlink()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
