"""Folders of converted weights: an Orbax checkpoint, and beside it a description of what it is.

The description is written last, so a folder that has one is whole.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tp_jax.files.atomic import write_json
from tp_jax.files.folders import can_resume
from tp_jax.files.orbax import absolute, save_weights, stored_shapes
from tp_jax.messages.errors import UserError
from tp_jax.parallel.sharding import path_name

DESCRIPTION = "description.json"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a folder of converted weights holds.

    Attributes:
      kind: as `tp_jax.convert --kind`.
      config: fields of the model's config; empty where it has none.
      identity: SHA-256 of the weights, the same wherever they were converted.
      source: name of the file that they were read from.
    """

    kind: str
    config: dict[str, Any]
    identity: str
    source: str


def save_folder(
    folder: epath.Path, params: Any, kind: str, config: dict[str, Any], source: str
) -> Description:
    """Writes a folder of weights; see `check_free` for where.

    Args:
      params: tree of NumPy arrays.

    Raises:
      OSError: the folder can't be made.
    """
    # Orbax, where it can't make the folder, leaves threads that wait for minutes.
    folder.mkdir(parents=True, exist_ok=True)
    description = Description(kind, config, weights_identity(params), source)
    save_weights(folder, params)
    fields = dataclasses.asdict(description)
    fields["sha256"] = fields.pop("identity")
    write_json(folder / DESCRIPTION, fields)
    return description


def check_free(folder: epath.Path) -> None:
    """Raises a UserError unless the folder is new or empty."""
    can_resume(folder, None, f"--out={folder}")


def read_description(folder: epath.Path, kind: str) -> Description:
    """The description of a folder.

    Raises:
      UserError: there is no such folder, or it is incomplete or of another kind.
    """
    command = f"python -m tp_jax.convert --kind={kind} makes one"
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder; {command}")
    path = folder / DESCRIPTION
    if not path.exists():
        raise UserError(f"{folder} isn't a whole folder of converted weights: {command}")
    try:
        fields = json.loads(path.read_text())
        fields["identity"] = fields.pop("sha256")
        description = Description(**fields)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged: convert the weights again") from error
    if description.kind != kind:
        raise UserError(f"{folder} holds weights of {description.kind}, not of {kind}: {command}")
    return description


def load_folder(folder: epath.Path, kind: str) -> tuple[Description, Any]:
    """The description and the tree of NumPy float32 arrays of a folder.

    Raises:
      UserError: there is no such folder, or it is incomplete, damaged or of another kind.
    """
    description = read_description(folder, kind)
    stored = stored_shapes(absolute(folder))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
            return description, checkpointer.restore(absolute(folder), arguments)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{folder} is damaged: convert the weights again") from error


def weights_identity(params: Any) -> str:
    """SHA-256 over the names, shapes, dtypes and values of a tree of arrays, sorted by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    digest = hashlib.sha256()
    for name, leaf in sorted((path_name(path), leaf) for path, leaf in leaves):
        array = np.ascontiguousarray(leaf)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.shape} {array.dtype.name}\n".encode())
        digest.update(little.data)
    return digest.hexdigest()
