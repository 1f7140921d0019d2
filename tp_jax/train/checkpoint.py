"""Checkpoints with Orbax: state, EMA, optimizer, data position and clock, saved as one thing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from tp_jax.errors import UserError
from tp_jax.parallel.sharding import path_name
from tp_jax.train.state import Params, TrainState

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Progress:
    """What goes with a state so that a run can go on as if it had never stopped.

    Attributes:
      data: the data iterator's state, JSON.
      seconds: spent training so far.
    """

    data: dict[str, Any]
    seconds: float


def open_manager(workdir: epath.Path, config: ConfigDict | None = None) -> ocp.CheckpointManager:
    """The checkpoints of a workdir; with a config to write them, without to read them."""
    folder = _absolute(workdir) / FOLDER
    if config is None:
        return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
    keep = [managers.LatestN(config.keep)]
    if config.keep_every_steps:
        keep.append(managers.EveryNSteps(config.keep_every_steps))
    options = ocp.CheckpointManagerOptions(
        # The loop decides when; the manager only must not skip what it is handed.
        save_decision_policy=managers.FixedIntervalPolicy(1),
        preservation_policy=managers.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(folder, options=options)


def _absolute(path: epath.Path) -> epath.Path:
    # Orbax takes no relative path, and epath would spoil gs:// by making it absolute.
    return path if path.is_absolute() else path.absolute()


def save(manager: ocp.CheckpointManager, state: TrainState, progress: Progress) -> None:
    """Starts saving; returns when the state has been copied off the devices."""
    train_step = int(jax.device_get(state.train_step))
    items = {name: ocp.args.StandardSave(part) for name, part in state.params.items()}
    items["ema"] = ocp.args.StandardSave(state.ema)
    items["opt_state"] = ocp.args.StandardSave(state.opt_state)
    items["progress"] = ocp.args.JsonSave(dataclasses.asdict(progress))
    manager.save(train_step, args=ocp.args.Composite(**items))


def restore(
    manager: ocp.CheckpointManager, train_step: int, abstract: TrainState
) -> tuple[TrainState, Progress]:
    """Restores a state onto the shardings that the abstract one carries."""
    items = {name: ocp.args.StandardRestore(part) for name, part in abstract.params.items()}
    items["ema"] = ocp.args.StandardRestore(abstract.ema)
    items["opt_state"] = ocp.args.StandardRestore(abstract.opt_state)
    items["progress"] = ocp.args.JsonRestore()
    found = _restore(manager, train_step, items)
    params = {name: found[name] for name in abstract.params}
    step = jax.device_put(jnp.int32(train_step), abstract.train_step.sharding)
    state = TrainState(step, params, found["ema"], found["opt_state"])
    return state, Progress(**found["progress"])


def restore_params(
    manager: ocp.CheckpointManager, train_step: int, abstract: Params, *, ema: bool
) -> Params:
    """Restores parameters alone: averaged where there is an average, else as trained.

    Parts that weren't trained have no average and are restored as they are.
    """
    averaged = set()
    if ema:
        averaged = set(_stored(_item(manager, train_step, "ema"))) & set(abstract)
    items = {
        name: ocp.args.StandardRestore(part)
        for name, part in abstract.items()
        if name not in averaged
    }
    if averaged:
        items["ema"] = ocp.args.StandardRestore({name: abstract[name] for name in averaged})
    found = _restore(manager, train_step, items)
    params = dict(found.get("ema") or {}) | {name: found[name] for name in items if name != "ema"}
    return {name: params[name] for name in abstract}


def _restore(manager, train_step, items):
    try:
        return manager.restore(train_step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise UserError(
            f"checkpoint {train_step} in {manager.directory} can't be restored: {reason} … if it "
            f"is damaged, delete its folder and the one before it is used"
        ) from error


def find_step(manager: ocp.CheckpointManager, train_step: int | None = None) -> int:
    """The newest checkpoint, or the one asked for.

    Raises:
      UserError: there is none, or not that one.
    """
    steps = manager.all_steps()
    if not steps:
        raise UserError(f"no checkpoint in {manager.directory}: train there first")
    if train_step is None:
        return max(steps)
    if train_step not in steps:
        raise UserError(
            f"no checkpoint {train_step} in {manager.directory}: there are "
            f"{', '.join(str(step) for step in sorted(steps))}"
        )
    return train_step


def save_base(folder: epath.Path, base: Any) -> None:
    """Writes a base checkpoint: the `base` parameters alone."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(_absolute(folder), base)


def load_base(path: str, abstract: Any) -> Any:
    """Loads base parameters onto the shardings that the abstract ones carry.

    Args:
      path: a base checkpoint, or a workdir, whose newest average is taken.

    Raises:
      UserError: nothing is there, or its weights don't fit, naming the first that doesn't.
    """
    folder = _absolute(epath.Path(path))
    if not folder.exists():
        raise UserError(
            f"config.init.base={path}: there is no such folder; name a base checkpoint or a workdir"
        )
    if (folder / FOLDER).exists():
        with open_manager(folder) as manager:
            step = find_step(manager)
            averaged = _stored(_item(manager, step, "ema"))
            folder = _item(manager, step, "ema" if "base" in averaged else "base")
    elif not (folder / "_METADATA").exists():
        raise UserError(
            f"config.init.base={path} is neither a base checkpoint nor a workdir with checkpoints"
        )
    stored = _stored(folder)
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


def _item(manager: ocp.CheckpointManager, train_step: int, name: str) -> epath.Path:
    return epath.Path(manager.directory) / str(train_step) / name


def _stored(folder: epath.Path) -> Any:
    """The tree of shapes and dtypes that a folder holds."""
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder).item_metadata
    if found is None:
        raise UserError(f"{folder} is damaged or no checkpoint of tp_jax: use another checkpoint")
    return found.tree


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
