"""Saving and restoring training checkpoints with Orbax.

One atomic save holds the parameters, their EMA, the optimizer state, the position in the data and
the training time so far.
"""

import dataclasses
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from tp_jax.files.orbax import absolute
from tp_jax.messages.errors import TrainingError, UserError, first_line
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import broadcast_from_first
from tp_jax.train.state import TrainState
from tp_jax.workdir.checkpoints import DAMAGED, FOLDER, restore_items
from tp_jax.workdir.integrity import FOLDER as CHECKSUMS
from tp_jax.workdir.integrity import HAS_CHECKSUMS, Checksums, find_damage, is_verified


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a checkpoint holds in addition to the state, so that a run resumes exactly.

    Attributes:
      data: the data iterator's state, as JSON.
      seconds: seconds of training so far.
    """

    data: dict[str, Any]
    seconds: float


def _open_for_writing(workdir: epath.Path, config: ConfigDict) -> ocp.CheckpointManager:
    keep: list[managers.PreservationPolicy] = [managers.LatestN(config.keep)]
    if config.keep_every_steps:
        keep.append(managers.EveryNSteps(config.keep_every_steps))
    # By default, Orbax divides each array among the devices that hold a copy of it, and compiles a
    # program for each shape to do so. Arrays whose parts are below 1 MiB are written by one device.
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    options = ocp.CheckpointManagerOptions(
        # The training loop decides when to save, so the manager must accept every step.
        save_decision_policy=managers.FixedIntervalPolicy(1),
        preservation_policy=managers.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(absolute(workdir) / FOLDER, options=options)


class Checkpoints:
    """The checkpoints of a run, saved with checksums.

    A context manager: leaving it waits until a running save is finished, also after an error.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict) -> None:
        self._workdir = absolute(workdir)
        self._manager = _open_for_writing(workdir, config)
        self._checksums = Checksums(self._workdir)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Wait for a running save.

        Raises:
          TrainingError: the save failed.
        """
        self.__exit__(None, None, None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._manager.close()
        except Exception as failure:
            # If another error ended the run, report that one.
            if error is None:
                raise self._save_error(failure) from failure
        finally:
            self._checksums.close()

    def steps(self) -> list[int]:
        """Return the train steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, progress: Progress) -> None:
        """Start an asynchronous save. Return once the state has been copied to host memory.

        Raises:
          TrainingError: this save or the one before it failed. Older checkpoints are kept.
        """
        train_step = int(jax.device_get(state.train_step))
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.StandardSave(part) for name, part in state.params.items()
        }
        items["ema"] = ocp.args.StandardSave(state.ema)
        items["opt_state"] = ocp.args.StandardSave(state.opt_state)
        saved = dataclasses.asdict(progress) | {HAS_CHECKSUMS: True}
        items["progress"] = ocp.args.JsonSave(saved)
        try:
            if jax.process_index() == 0:
                self._checksums.begin(train_step)
            self._manager.save(train_step, args=ocp.args.Composite(**items))
        except Exception as failure:
            raise self._save_error(failure) from failure
        if jax.process_index() == 0:
            self._checksums.write_when_saved(train_step, self._folder(train_step))

    def _save_error(self, failure: Exception) -> TrainingError:
        kept = [step for step in self.steps() if self._folder(step).exists()]
        return TrainingError(
            f"a checkpoint can't be written in {self._manager.directory}: {first_line(failure)}; "
            f"checkpoints kept: {', '.join(map(str, kept)) or 'none'}. Free disk space there, then "
            f"run the same command to resume"
        )

    def restore_newest(
        self, abstract: TrainState, *, allow_unchecked: bool = False
    ) -> tuple[TrainState, Progress] | None:
        """Restore the newest undamaged checkpoint onto the shardings of `abstract`.

        Damaged checkpoints that are newer are moved to the folder "damaged".

        Args:
          abstract: shapes, dtypes and shardings of the state.
          allow_unchecked: use checkpoints whose checksums are missing or damaged.

        Returns:
          The state and its progress; None if there are no checkpoints.

        Raises:
          UserError: all checkpoints are damaged, or there are only damaged ones and ones without
            checksums, which stay where they are.
        """
        steps, unchecked = self.steps(), dict[int, str]()
        for step in reversed(steps):
            problem, checked = self._damage(step)
            if problem and not checked and not allow_unchecked:
                unchecked[step] = problem
                continue
            if problem is None or not checked:
                try:
                    found = restore(self._manager, step, abstract)
                except UserError as error:
                    # The checksums are right, so the files aren't the cause of the error.
                    if is_verified(self._workdir, step):
                        raise
                    problem = str(error)
                else:
                    for newer, reason in unchecked.items():
                        # The reason ends with what --allow_unchecked does.
                        self._move_to_damaged(newer, f"{reason}, once it is moved back")
                    if jax.process_index() == 0 and not is_verified(self._workdir, step):
                        self._checksums.write_when_saved(step, self._folder(step))
                    return found
            self._move_to_damaged(step, problem)
        if unchecked:
            raise UserError(
                f"no checkpoint in {self._workdir} can be checked: {next(iter(unchecked.values()))}"
            )
        if steps:
            raise UserError(
                f"all checkpoints in {self._workdir} are damaged and were moved to "
                f"{self._workdir / DAMAGED}: start in a new workdir"
            )
        return None

    def _folder(self, step: int) -> epath.Path:
        return epath.Path(self._manager.directory) / str(step)

    def _damage(self, step: int) -> tuple[str | None, bool]:
        """Look for damage on the first process.

        Returns:
          On all processes: what is damaged, if anything, and whether the files could be checked.
        """
        found, checked = None, True
        if jax.process_index() == 0:
            try:
                found = find_damage(self._workdir, step, self._folder(step))
            except UserError as error:
                found, checked = str(error), False
        damaged, checked = broadcast_from_first(bool(found)), bool(broadcast_from_first(checked))
        return (found or "as the first process reports") if damaged else None, checked

    def _move_to_damaged(self, step: int, problem: str) -> None:
        folder = self._workdir / DAMAGED
        say(f"checkpoint {step} is damaged ({problem}): moved to {folder}")
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            number = len(list(folder.iterdir()))
            self._folder(step).rename(folder / f"{step}_{number}")
            (self._workdir / CHECKSUMS / f"{step}.json").unlink(missing_ok=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} was moved")
        self._manager.reload()


def restore(
    manager: ocp.CheckpointManager, train_step: int, abstract: TrainState
) -> tuple[TrainState, Progress]:
    """Restore the checkpoint of a train step onto the shardings of `abstract`."""
    items: dict[str, ocp.args.CheckpointArgs] = {
        name: ocp.args.StandardRestore(part) for name, part in abstract.params.items()
    }
    items["ema"] = ocp.args.StandardRestore(abstract.ema)
    items["opt_state"] = ocp.args.StandardRestore(abstract.opt_state)
    items["progress"] = ocp.args.JsonRestore()
    found = restore_items(manager, train_step, items)
    params = {name: found[name] for name in abstract.params}
    step = jax.device_put(jnp.int32(train_step), abstract.train_step.sharding)
    state = TrainState(step, params, found["ema"], found["opt_state"])
    progress = found["progress"]
    return state, Progress(progress["data"], progress["seconds"])
