"""Orbax folders of arrays alone: written, and asked what they hold."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tp_jax.messages.errors import UserError


def save_weights(folder: epath.Path, params: Any) -> None:
    """Writes a tree of arrays alone; Orbax renames it into place when it is whole."""
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    # By default Orbax copies all arrays first, so that they may change while it writes.
    numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, numpy_handler))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        arrays = jax.tree.map(np.asarray, params)
        checkpointer.save(absolute(folder), args=ocp.args.PyTreeSave(arrays))


def stored_shapes(folder: epath.Path) -> Any:
    """The tree of shapes and dtypes that an Orbax folder holds.

    Raises:
      UserError: it holds none.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder).item_metadata
    if found is None:
        raise UserError(f"{folder} is damaged or no checkpoint of tp_jax: use another checkpoint")
    return found.tree


def absolute(path: epath.Path) -> epath.Path:
    """The path as Orbax takes it: never relative."""
    # epath would spoil gs:// by making it absolute.
    return path if path.is_absolute() else path.absolute()
