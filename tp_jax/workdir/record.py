"""The files that describe a run in its workdir: config, package versions and text encoder."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Collection
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

import tp_jax
from tp_jax import config as config_lib
from tp_jax.files.atomic import write_json
from tp_jax.files.differences import Difference, differences, first_difference
from tp_jax.files.folders import can_resume, make_folder
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.renamed import with_new_keys
from tp_jax.text import TextSpace
from tp_jax.workdir.changes import check_changes

CONFIG, VERSIONS, TEXT = "config.json", "versions.json", "text.json"
TEXT_FIELDS = {"identity": str, "tokens": int, "width": int, "pooled_width": int}
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "clu", "numpy",
    "ml_collections", "tensorflow-datasets",
)  # fmt: skip


def is_run(workdir: epath.Path) -> bool:
    """Return whether a workdir holds a run; False if it is new or empty.

    Raises:
      UserError: the folder holds other files but no run.
    """
    return can_resume(workdir, workdir / CONFIG, f"--workdir={workdir}", "tp_jax")


def check_workdir(
    workdir: epath.Path, config: ConfigDict, allowed: Collection[str] = ()
) -> list[Difference]:
    """Check, without writing, that a run with this config may start or resume in a workdir.

    Args:
      workdir: the workdir.
      config: the config of this start.
      allowed: fields and sections that --allow_change names.

    Returns:
      The fields that changed since the last start and are allowed to.

    Raises:
      UserError: the folder holds other files but no run, or a field changed that mustn't change.
    """
    if not is_run(workdir):
        return []
    old, new = config_lib.flat(read_config(workdir)), config_lib.flat(config)
    changes = sorted(differences(old, new))
    check_changes(workdir, changes, allowed)
    return changes


def check_text_space(workdir: epath.Path, text: TextSpace | None, name: str = "--workdir") -> None:
    """Check that a workdir was trained with the embeddings of the given text encoder.

    Args:
      workdir: the workdir of a run.
      text: the text space of the encoder. None, if there is no text, fits any workdir.
      name: the flag or config field that names the workdir, for the error message.

    Raises:
      UserError: it was trained with those of another encoder.
    """
    trained = read_text_space(workdir)
    if trained is None or text is None or trained == text:
        return
    changed = first_difference(vars(trained), vars(text))
    if changed:
        raise UserError(
            f"{name}={workdir} was trained with the embeddings of another encoder: {changed.name} "
            f"{str(changed.old)[:20]}, now {str(changed.new)[:20]}; use that encoder and "
            f"its settings, or name a new workdir"
        )


def write_workdir(workdir: epath.Path, config: ConfigDict, text: TextSpace | None = None) -> None:
    """Write the config, the versions and, if given, the text space. Only the first process does."""
    if jax.process_index():
        return
    make_folder(workdir, f"--workdir={workdir}")
    write_json(workdir / CONFIG, config.to_dict())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {
        "tp_jax": tp_jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
    write_json(workdir / VERSIONS, versions)
    if text:
        write_json(workdir / TEXT, dataclasses.asdict(text))


def read_text_space(workdir: epath.Path) -> TextSpace | None:
    """Read the text space that a workdir was trained with.

    Returns:
      The text space, or None if the model takes no text or was trained only on synthetic text.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / TEXT
    if not path.exists():
        return None
    remedy = "delete it if you know that the text encoder is the same"
    stored = read_json(path, TEXT_FIELDS, remedy)
    return TextSpace(**{name: stored[name] for name in TEXT_FIELDS})


def read_config(workdir: epath.Path) -> ConfigDict:
    """Read the config that a workdir was trained with.

    Raises:
      UserError: the folder isn't a workdir, or its config has fields that this version lacks.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(f"--workdir={workdir} has no {CONFIG}: name the workdir of a run")
    problem, remedy = "can't be read as a config of this version of tp_jax", "name another workdir"
    stored = read_json(path, {"model": dict, "diffusion": dict}, remedy, problem)
    try:
        fields = _with_tuples(stored)
        config = config_lib.default(fields["model"]["kind"], fields["diffusion"]["kind"])
        config.update(with_new_keys(fields))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).split(" Other fields present")[0]
        raise UserError(f"{path} {problem} ({reason}); {remedy}") from error
    return config


def _with_tuples(value: Any) -> Any:
    """Return a JSON value with lists as tuples, which configs have."""
    if isinstance(value, dict):
        return {key: _with_tuples(field) for key, field in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
