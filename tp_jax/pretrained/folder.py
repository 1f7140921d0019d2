"""Folders of converted weights: an Orbax checkpoint and description.json.

The description is written last, so a folder that has one is complete.
"""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tp_jax.files.atomic import write_json
from tp_jax.files.folders import can_resume
from tp_jax.files.jsonl import read_json
from tp_jax.files.orbax import absolute, save_weights, stored_shapes
from tp_jax.messages.errors import UserError
from tp_jax.models.parameters import check_finite_params
from tp_jax.parallel.sharding import path_name

DESCRIPTION_FILE = "description.json"


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of description.json.

    Attributes:
      kind: value of `tp_jax.convert --kind`.
      config: fields of the model's config; empty if the model has none.
      identity: SHA-256 of the converted weights, which doesn't depend on the machine or the path.
      source: name of the file or folder that the weights were read from.
    """

    kind: str
    config: dict[str, Any]
    identity: str
    source: str


def save_folder(
    folder: epath.Path, params: Any, kind: str, config: dict[str, Any], source: str
) -> Description:
    """Write a folder of converted weights.

    Args:
      folder: a folder that passes `check_new_or_empty`.
      params: tree of NumPy arrays.
      kind, config, source: fields of the `Description`.

    Returns:
      The description that was written.

    Raises:
      OSError: the folder can't be created.
    """
    # If Orbax itself fails to create the folder, its threads block the process for minutes.
    folder.mkdir(parents=True, exist_ok=True)
    description = Description(kind, config, weights_identity(params), source)
    save_weights(folder, params)
    fields = dataclasses.asdict(description)
    fields["sha256"] = fields.pop("identity")
    write_json(folder / DESCRIPTION_FILE, fields)
    return description


def check_new_or_empty(folder: epath.Path) -> None:
    """Raise a UserError unless the folder is new or empty."""
    can_resume(folder, None, f"--out={folder}")


def read_description(folder: epath.Path, kind: str) -> Description:
    """Read the description of a folder of converted weights.

    Args:
      folder: the folder.
      kind: the kind of weights that it must hold.

    Raises:
      UserError: the folder doesn't exist, is incomplete, or holds another kind of weights.
    """
    command = f"create it with python -m tp_jax.convert --kind={kind}"
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder; {command}")
    path = folder / DESCRIPTION_FILE
    if not path.exists():
        raise UserError(f"{folder} isn't a complete folder of converted weights: {command}")
    wanted = {"kind": str, "config": dict, "sha256": str, "source": str}
    fields = read_json(path, wanted, "convert the weights again")
    description = Description(fields["kind"], fields["config"], fields["sha256"], fields["source"])
    if description.kind != kind:
        raise UserError(f"{folder} holds weights of {description.kind}, not of {kind}: {command}")
    return description


def load_folder(folder: epath.Path, kind: str) -> tuple[Description, Any]:
    """Load a folder of converted weights.

    Args:
      folder: the folder.
      kind: the kind of weights that it must hold.

    Returns:
      The description, and the weights as a tree of float32 NumPy arrays.

    Raises:
      UserError: the folder doesn't exist, is incomplete or damaged, holds another kind of weights,
        or weights with another SHA-256, NaN or infinity.
    """
    description = read_description(folder, kind)
    stored = stored_shapes(absolute(folder))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
            params = checkpointer.restore(absolute(folder), arguments)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{folder} is damaged: convert the weights again") from error
    check_finite_params(str(folder), params, "convert the weights again")
    if weights_identity(params) != description.identity:
        raise UserError(
            f"{folder} is damaged: its weights aren't those that {DESCRIPTION_FILE} gives the "
            f"SHA-256 of; convert them again"
        )
    return description, params


def weights_identity(params: Any) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and values of a tree of arrays.

    The order of the tree and the memory layout of the arrays don't matter.

    Example:
      >>> weights_identity({"bias": np.zeros(2, np.float32)})[:12]
      'c28369376e4c'
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    digest = hashlib.sha256()
    for name, leaf in sorted((path_name(path), leaf) for path, leaf in leaves):
        array = np.ascontiguousarray(leaf)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.shape} {array.dtype.name}\n".encode())
        digest.update(little.data)
    return digest.hexdigest()
