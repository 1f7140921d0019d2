"""Reading the checkpoints of a workdir: parameters, whatever they were trained on."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tp_jax.files.orbax import absolute, stored_shapes
from tp_jax.messages.errors import UserError
from tp_jax.models.parameters import Params
from tp_jax.parallel.sharding import path_name
from tp_jax.workdir.integrity import find_damage

FOLDER, DAMAGED = "checkpoints", "damaged"


# What Orbax and its parts raise for files that are missing, cut short or changed.
UNREADABLE = (ValueError, KeyError, AttributeError, TypeError, OSError, RuntimeError)


def open_manager(workdir: epath.Path) -> ocp.CheckpointManager:
    """The checkpoints of a workdir, to be read."""
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(absolute(workdir) / FOLDER, options=options)


def restore_params(
    manager: ocp.CheckpointManager, train_step: int, abstract: Params, *, ema: bool
) -> Params:
    """Restores parameters alone: averaged where there is an average, else as trained.

    Parts that weren't trained have no average and are restored as they are.
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
    return {name: params[name] for name in abstract}


def restore_items(
    manager: ocp.CheckpointManager, train_step: int, items: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Restores items by their names.

    Raises:
      UserError: they can't be.
    """
    try:
        return manager.restore(train_step, args=ocp.args.Composite(**items))
    except UNREADABLE as error:
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise UserError(
            f"checkpoint {train_step} in {manager.directory} can't be restored: {reason} … if it "
            f"is damaged, name another with --checkpoint=N"
        ) from error


def find_step(manager: ocp.CheckpointManager, train_step: int | None = None) -> int:
    """The newest checkpoint, or the one asked for.

    Raises:
      UserError: there is none, or not that one, or its files are damaged.
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
    problem = find_damage(directory.parent, train_step, directory / str(train_step))
    if problem:
        raise UserError(
            f"checkpoint {train_step} in {directory} is damaged ({problem}): name another with "
            f"--checkpoint=N, of {listed}"
        )
    return train_step


# Of a model, what decides its numbers but not the shapes of its weights.
SHAPELESS = ("heads", "image_size", "patch", "max_grid", "base_grid")


def load_base(path: str, abstract: Any, model: Mapping[str, Any] | None = None) -> Any:
    """Loads base parameters onto the shardings that the abstract ones carry.

    Args:
      path: a base checkpoint, or a workdir, whose newest average is taken.
      model: fields of the model that it is for, to be compared with what the folder says.

    Raises:
      UserError: nothing is there, it is of another model, or its weights don't fit, naming the
        first that doesn't.
    """
    folder = absolute(epath.Path(path))
    if not folder.exists():
        raise UserError(
            f"the base {path}: there is no such folder; name a base checkpoint or a workdir"
        )
    if (folder / FOLDER).exists():
        with open_manager(folder) as manager:
            step = find_step(manager)
            averaged = stored_shapes(_item(manager, step, "ema"))
            folder = _item(manager, step, "ema" if "base" in averaged else "base")
    elif not (folder / "_METADATA").exists():
        raise UserError(
            f"the base {path} is neither a base checkpoint nor a workdir with checkpoints"
        )
    _check_same_model(path, model or {})
    stored = stored_shapes(folder)
    nested = "base" in stored
    check_fit(path, stored["base"] if nested else stored, abstract)
    with ocp.PyTreeCheckpointer() as checkpointer:
        target = {"base": abstract} if nested else abstract
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        restored = checkpointer.restore(
            folder,
            ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True),
        )
    return restored["base"] if nested else restored


def _check_same_model(path: str, model: Mapping[str, Any]) -> None:
    """Compares what shapes can't tell; a folder of weights alone says nothing."""
    for name, key in (("description.json", "config"), ("config.json", "model")):
        file = epath.Path(path) / name
        theirs = json.loads(file.read_text())[key] if file.exists() else {}
        for field in SHAPELESS:
            if field in theirs and field in model and theirs[field] != model[field]:
                raise UserError(
                    f"the base {path} has {field}={theirs[field]}, but config.model.{field}="
                    f"{model[field]}: set it so, or give another base"
                )


def _item(manager: ocp.CheckpointManager, train_step: int, name: str) -> epath.Path:
    return epath.Path(manager.directory) / str(train_step) / name


def check_fit(path: str, stored: Any, wanted: Any) -> None:
    """Raises a UserError that names a missing, left-over or mis-shaped weight."""
    stored, wanted = _shapes(stored), _shapes(wanted)
    problems = [f"{name} is missing" for name in wanted.keys() - stored.keys()]
    problems += [f"{name} is left over" for name in stored.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {stored[name]}, the model wants {wanted[name]}"
        for name in wanted.keys() & stored.keys()
        if stored[name] != wanted[name]
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"the base checkpoint {path} doesn't fit config.model: {min(problems)}{more}; "
            f"make config.model as the base was trained, or give another base"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): tuple(np.shape(leaf)) for path, leaf in leaves}
