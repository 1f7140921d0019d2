"""Orbax folders that hold one tree of arrays: write them, and read their shapes and dtypes."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tp_jax.files.atomic import write_errors
from tp_jax.messages.errors import UserError


def save_weights(folder: epath.Path, params: Any) -> None:
    """Write a tree of arrays; Orbax renames the folder into place once it is complete.

    Raises:
      WriteError: the folder can't be written.
    """
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    # Orbax copies all arrays by default, so that a caller may change them during the write. That
    # isn't needed here and would double the memory.
    numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, numpy_handler))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    arrays = jax.tree.map(np.asarray, params)
    # Orbax's threads raise these for a full disk and the like.
    errors = (ValueError, RuntimeError)
    with write_errors(folder, errors), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(absolute(folder), args=ocp.args.PyTreeSave(arrays))


def stored_shapes(folder: epath.Path) -> Any:
    """Return the tree of shapes and dtypes of the arrays in an Orbax folder.

    Raises:
      UserError: the folder holds no readable tree.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder).item_metadata
    if found is None:
        raise UserError(
            f"{folder} is damaged or not a checkpoint of tp_jax; use another checkpoint"
        )
    return found.tree


def absolute(path: epath.Path) -> epath.Path:
    """Return the path as an absolute path, which Orbax requires."""
    # `absolute` would break a gs:// path, which counts as absolute already.
    return path if path.is_absolute() else path.absolute()
