"""Reading checkpoints of a workdir: parameters, restored onto any mesh."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tp_jax.files.hub import local
from tp_jax.files.jsonl import read_json
from tp_jax.files.orbax import absolute, stored_shapes
from tp_jax.messages.errors import UserError, first_line
from tp_jax.models.parameters import Params, check_finite_params
from tp_jax.parallel.sharding import path_name
from tp_jax.workdir.integrity import CHECKPOINTS as FOLDER
from tp_jax.workdir.integrity import find_damage

DAMAGED = "damaged"

# Errors that Orbax and its dependencies raise for missing, truncated or changed files.
UNREADABLE = (ValueError, KeyError, AttributeError, TypeError, OSError, RuntimeError)


def open_manager(workdir: epath.Path) -> ocp.CheckpointManager:
    """Open the checkpoints of a workdir read-only."""
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(absolute(workdir) / FOLDER, options=options)


def restore_params(
    manager: ocp.CheckpointManager, train_step: int, abstract: Params, *, ema: bool
) -> Params:
    """Restore only the parameters of a checkpoint.

    Args:
      manager: the checkpoints, from `open_manager`.
      train_step: which checkpoint.
      abstract: {"base", "thinking"} shapes, dtypes and shardings to restore onto.
      ema: restore the average (EMA) of the parts that were trained. Frozen parts have no average
        and are restored as they are. False restores all parts as they were last trained.

    Raises:
      UserError: the checkpoint can't be restored, or a weight is NaN or infinite.
    """
    averaged = set()
    if ema:
        averaged = set(stored_shapes(_item(manager, train_step, "ema"))) & set(abstract)
    items = {
        name: ocp.args.StandardRestore(part)
        for name, part in abstract.items()
        if name not in averaged
    }
    if averaged:
        items["ema"] = ocp.args.StandardRestore({name: abstract[name] for name in averaged})
    found = restore_items(manager, train_step, items)
    params = dict(found.get("ema") or {}) | {name: found[name] for name in items if name != "ema"}
    where = f"checkpoint {train_step} in {manager.directory}"
    check_finite_params(where, params, "choose another with --checkpoint=N")
    return {name: params[name] for name in abstract}


def restore_items(
    manager: ocp.CheckpointManager, train_step: int, items: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Restore the items of a checkpoint by name.

    Args:
      manager: the checkpoints, from `open_manager`.
      train_step: which checkpoint.
      items: Orbax restore arguments by item name.

    Raises:
      UserError: the checkpoint can't be restored.
    """
    try:
        return manager.restore(train_step, args=ocp.args.Composite(**items))
    except UNREADABLE as error:
        raise UserError(
            f"checkpoint {train_step} in {manager.directory} can't be restored: "
            f"{first_line(error)} … If it is damaged, choose another with --checkpoint=N"
        ) from error


def find_step(
    manager: ocp.CheckpointManager,
    train_step: int | None = None,
    *,
    allow_unchecked: bool = False,
    remedy: str = "",
) -> int:
    """Return the train step of the newest checkpoint, or check that the given one exists.

    Args:
      manager: the checkpoints, from `open_manager`.
      train_step: the wanted checkpoint; None is the newest.
      allow_unchecked: accept a checkpoint whose checksums are missing or damaged.
      remedy: what to do about a damaged checkpoint, if not to choose another with --checkpoint.

    Raises:
      UserError: there is no checkpoint, or not the given one, or its files or its checksums are
        damaged.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"no checkpoint in {manager.directory}: train there first")
    listed = ", ".join(map(str, steps))
    if train_step is None:
        train_step = steps[-1]
    if train_step not in steps:
        raise UserError(f"no checkpoint {train_step} in {manager.directory}: there are {listed}")
    directory = epath.Path(manager.directory)
    try:
        problem = find_damage(directory.parent, train_step, directory / str(train_step))
    except UserError as error:
        problem = None if allow_unchecked else str(error)
    if problem:
        raise UserError(
            f"checkpoint {train_step} in {directory} is damaged ({problem}): "
            + (remedy or f"choose another with --checkpoint=N, from {listed}")
        )
    return train_step


# Fields of `config.model` that change its outputs but not the shapes of its weights.
NON_SHAPE_FIELDS = (
    "heads", "image_size", "patch", "max_grid", "base_grid", "null_class", "num_classes",
    "grid_offset", "time_input",
)  # fmt: skip


def load_base(
    path: str,
    abstract: Any,
    model: Mapping[str, Any] | None = None,
    *,
    allow_unchecked: bool = False,
) -> Any:
    """Load base parameters onto the shardings of `abstract`.

    Args:
      path: a base checkpoint, or a workdir. Of a workdir, the newest checkpoint's average (EMA) is
        loaded, or the base itself if it was frozen there.
      abstract: shapes, dtypes and shardings of the base parameters.
      model: fields of `config.model`. Those that the weight shapes don't determine are compared
        with the config or description in the folder.
      allow_unchecked: as in `find_step`, for a workdir.

    Raises:
      UserError: the folder doesn't exist, belongs to another model, or a weight is missing, left
        over, of another shape, NaN or infinite.
    """
    folder = absolute(local(path))
    if not folder.exists():
        raise UserError(
            f"the base {path}: there is no such folder; name a base checkpoint or a workdir"
        )
    if (folder / FOLDER).exists():
        with open_manager(folder) as manager:
            # Training has no flag for the checkpoint of a base.
            remedy = "give another base, or move the checkpoint away, to use the one before it"
            step = find_step(manager, allow_unchecked=allow_unchecked, remedy=remedy)
            averaged = stored_shapes(_item(manager, step, "ema"))
            folder = _item(manager, step, "ema" if "base" in averaged else "base")
    elif not (folder / "_METADATA").exists():
        raise UserError(
            f"the base {path} is neither a base checkpoint nor a workdir with checkpoints"
        )
    _check_same_model(path, model or {})
    stored = stored_shapes(folder)
    nested = "base" in stored
    check_fit(f"the base checkpoint {path}", stored["base"] if nested else stored, abstract)
    with ocp.PyTreeCheckpointer() as checkpointer:
        target = {"base": abstract} if nested else abstract
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        restored = checkpointer.restore(
            folder,
            ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True),
        )
    base = restored["base"] if nested else restored
    check_finite_params(f"the base {path}", base, "give another base")
    return base


def _check_same_model(path: str, model: Mapping[str, Any]) -> None:
    """Compare the fields that weight shapes don't determine, if the folder describes its model."""
    for name, key in (("description.json", "config"), ("config.json", "model")):
        file = local(path) / name
        remedy = "give another base"
        stored = read_json(file, {key: dict}, remedy)[key] if file.exists() else {}
        for field in NON_SHAPE_FIELDS:
            if field in stored and field in model and stored[field] != model[field]:
                raise UserError(
                    f"the base {path} has {field}={stored[field]}, but config.model.{field}="
                    f"{model[field]}: set it to {stored[field]}, or give another base"
                )


def _item(manager: ocp.CheckpointManager, train_step: int, name: str) -> epath.Path:
    return epath.Path(manager.directory) / str(train_step) / name


def check_fit(name: str, stored: Any, wanted: Any) -> None:
    """Check that stored weights have the names and shapes that a model expects.

    Args:
      name: what is stored, for the error message.
      stored: a tree of stored shapes.
      wanted: a tree of the model's arrays or abstract arrays.

    Raises:
      UserError: a weight is missing, left over or of another shape; the message names one.
    """
    stored, wanted = _shapes(stored), _shapes(wanted)
    problems = [f"{name} is missing" for name in wanted.keys() - stored.keys()]
    problems += [f"{name} is left over" for name in stored.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {stored[name]}, the model expects {wanted[name]}"
        for name in wanted.keys() & stored.keys()
        if stored[name] != wanted[name]
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{name} doesn't fit config.model: {min(problems)}{more}; set config.model to the "
            f"values of the base, or give another base"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): tuple(np.shape(leaf)) for path, leaf in leaves}
