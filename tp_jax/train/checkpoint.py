"""Checkpoints with Orbax: state, EMA, optimizer, data position and clock in one atomic save."""

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
from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import broadcast_from_first
from tp_jax.train.state import TrainState
from tp_jax.workdir.checkpoints import DAMAGED, FOLDER, restore_items
from tp_jax.workdir.integrity import FOLDER as CHECKSUMS
from tp_jax.workdir.integrity import Checksums, find_damage


@dataclasses.dataclass(frozen=True)
class Progress:
    """What goes with a state so that a run can go on as if it had never stopped.

    Attributes:
      data: the data iterator's state, JSON.
      seconds: spent training so far.
    """

    data: dict[str, Any]
    seconds: float


def _open_for_writing(workdir: epath.Path, config: ConfigDict) -> ocp.CheckpointManager:
    keep: list[managers.PreservationPolicy] = [managers.LatestN(config.keep)]
    if config.keep_every_steps:
        keep.append(managers.EveryNSteps(config.keep_every_steps))
    options = ocp.CheckpointManagerOptions(
        # The loop decides when; the manager only must not skip what it is handed.
        save_decision_policy=managers.FixedIntervalPolicy(1),
        preservation_policy=managers.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(absolute(workdir) / FOLDER, options=options)


class Checkpoints:
    """The checkpoints of a run: saved with checksums, restored from the newest good one.

    A context: whatever ends it, a save under way is finished.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict) -> None:
        self._workdir = absolute(workdir)
        self._manager = _open_for_writing(workdir, config)
        self._checksums = Checksums(self._workdir)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Waits for a save under way.

        Raises:
          TrainingError: it can't be written.
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
            # What ended the run first is what the person has to see.
            if error is None:
                raise self._not_written(failure) from failure
        finally:
            self._checksums.close()

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts saving; returns when the state has been copied off the devices.

        Raises:
          TrainingError: this or the save before it can't be written; older ones are kept.
        """
        train_step = int(jax.device_get(state.train_step))
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.StandardSave(part) for name, part in state.params.items()
        }
        items["ema"] = ocp.args.StandardSave(state.ema)
        items["opt_state"] = ocp.args.StandardSave(state.opt_state)
        items["progress"] = ocp.args.JsonSave(dataclasses.asdict(progress))
        try:
            self._manager.save(train_step, args=ocp.args.Composite(**items))
        except Exception as failure:
            raise self._not_written(failure) from failure
        if jax.process_index() == 0:
            self._checksums.write_when_saved(train_step, self._folder(train_step))

    def _not_written(self, failure: Exception) -> TrainingError:
        kept = [step for step in self.steps() if self._folder(step).exists()]
        reason = (str(failure).strip() or repr(failure)).splitlines()[0][:200]
        return TrainingError(
            f"a checkpoint can't be written in {self._manager.directory}: {reason}; kept are "
            f"{', '.join(map(str, kept)) or 'none'}. Make room there; the same command goes on"
        )

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest good checkpoint, on the shardings of `abstract`; None where there is none.

        Damaged ones are set aside, into the folder "damaged", on the way.

        Raises:
          UserError: all there are are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            problem = self._damage(step)
            if problem is None:
                try:
                    return restore(self._manager, step, abstract)
                except UserError as error:
                    # With checksums that are right, it isn't the files that are at fault.
                    if self._has_checksums(step):
                        raise
                    problem = str(error)
            self._set_aside(step, problem)
        if steps:
            raise UserError(
                f"all checkpoints in {self._workdir} are damaged and were set aside in "
                f"{self._workdir / DAMAGED}: start in a new workdir"
            )
        return None

    def _folder(self, step: int) -> epath.Path:
        return epath.Path(self._manager.directory) / str(step)

    def _has_checksums(self, step: int) -> bool:
        return (self._workdir / CHECKSUMS / f"{step}.json").exists()

    def _damage(self, step: int) -> str | None:
        """Found by the first process, known to all."""
        found = None
        if jax.process_index() == 0:
            found = find_damage(self._workdir, step, self._folder(step))
        damaged = broadcast_from_first(found is not None)
        return (found or "as the first process found") if damaged else None

    def _set_aside(self, step: int, problem: str) -> None:
        folder = self._workdir / DAMAGED
        say(f"checkpoint {step} is damaged ({problem}): set aside in {folder}")
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            number = len(list(folder.iterdir()))
            self._folder(step).rename(folder / f"{step}_{number}")
            (self._workdir / CHECKSUMS / f"{step}.json").unlink(missing_ok=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} is set aside")
        self._manager.reload()


def restore(
    manager: ocp.CheckpointManager, train_step: int, abstract: TrainState
) -> tuple[TrainState, Progress]:
    """Restores a state onto the shardings that the abstract one carries."""
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
    return state, Progress(**found["progress"])
