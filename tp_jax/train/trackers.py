"""Where training writes its curves: TensorBoard, Weights & Biases and trackio, with the same names.

A tracker that is down costs its curves and one warning, and never the run.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.files.atomic import Dispensable, write_json
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.train import metrics
from tp_jax.train.metrics import Writer

# The identity of the run at each tracker, so that a resumed run goes on there.
FILE = "trackers.json"
TRACKERS = ("wandb", "trackio")
# Seconds that a tracker may take to start.
START_SECONDS = 60


def check_writers(config: ConfigDict) -> None:
    """Raise a UserError if a tracker of `config.log.writers` isn't installed."""
    for name in config.log.writers:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise UserError(
                f"config.log.writers: {name} isn't installed: pip install {name}, or leave it out"
            )


def open_writers(config: ConfigDict, workdir: epath.Path) -> "Writers":
    """Open the writers of `config.log.writers`. Processes other than the first write nothing.

    Raises:
      UserError: tensorboardX is wanted and isn't installed.
    """
    writers: list[Writer] = []
    for name in config.log.writers:
        if name == "tensorboard":
            writers.append(metrics.TensorBoardWriter(workdir))
        elif jax.process_index() == 0:
            writers.append(Tracker(name, config, workdir))
    return Writers(writers)


class Writers:
    """Writes to several writers in turn; the methods are those of `Writer`."""

    def __init__(self, writers: list[Writer]) -> None:
        self._writers = writers

    def write_scalars(self, train_step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for writer in self._writers:
            writer.write_scalars(train_step, scalars)

    def write_images(self, train_step: int, images: Mapping[str, np.ndarray]) -> None:
        """Add images, uint8 [H, W, 1 or 3]."""
        for writer in self._writers:
            writer.write_images(train_step, images)

    def write_texts(self, train_step: int, texts: Mapping[str, str]) -> None:
        """Add texts in Markdown."""
        for writer in self._writers:
            writer.write_texts(train_step, texts)

    def close(self) -> None:
        """Wait until everything is written."""
        for writer in self._writers:
            writer.close()


class Tracker:
    """Writes to Weights & Biases or trackio, which has the same functions.

    After the first failure it warns and writes nothing more; the run goes on.
    """

    def __init__(self, name: str, config: ConfigDict, workdir: epath.Path) -> None:
        """Start or continue the run at the tracker.

        Args:
          name: "wandb" or "trackio".
          config: of the run; the tracker gets all fields.
          workdir: its last name is that of the run.
        """
        self._name, self._dispensable = name, Dispensable()
        self._module: Any = None
        self._guarded(lambda: self._start(config, workdir))

    def _start(self, config: ConfigDict, workdir: epath.Path) -> None:
        module = importlib.import_module(self._name)
        identity = _identity(workdir, self._name)
        fields = {key: _plain(value) for key, value in config_lib.flat(config).items()}
        options: dict[str, Any] = {"project": config.log.project, "config": fields}
        if self._name == "wandb":
            options |= {"name": workdir.name, "id": identity, "resume": "allow"}
            if "://" not in str(workdir):
                options["dir"] = str(workdir)
            # The steps of a run that resumes at an earlier checkpoint are written again.
            options["settings"] = module.Settings(init_timeout=START_SECONDS, silent=True)
        else:
            options |= {"name": f"{workdir.name}-{identity[:6]}", "resume": "allow"}
        module.init(**options)
        if self._name == "wandb":
            module.define_metric("*", step_metric="train_step")
        self._module = module
        say(f"curves also go to {self._name}, project {config.log.project}, run {workdir.name}")

    def write_scalars(self, train_step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        self._log(lambda: {**scalars, "train_step": train_step})

    def write_images(self, train_step: int, images: Mapping[str, np.ndarray]) -> None:
        """Add images, uint8 [H, W, 1 or 3]."""

        def values() -> dict[str, Any]:
            shown = {tag: np.broadcast_to(i, (*i.shape[:2], 3)) for tag, i in images.items()}
            found = {tag: self._module.Image(np.ascontiguousarray(i)) for tag, i in shown.items()}
            return {**found, "train_step": train_step}

        self._log(values)

    def write_texts(self, train_step: int, texts: Mapping[str, str]) -> None:
        """Do nothing: the only text is the config, which the tracker has already."""

    def close(self) -> None:
        """Wait until everything is written."""
        if self._module:
            self._guarded(self._module.finish)

    def _log(self, values: Callable[[], dict[str, Any]]) -> None:
        if self._module:
            self._guarded(lambda: self._module.log(values()))

    def _guarded(self, act: Callable[[], Any]) -> None:
        """Do something with the tracker; after a failure, warn and give the tracker up."""
        try:
            act()
        except Exception as error:  # Its client raises many types.
            self._dispensable.warn(f"curves in {self._name}", error)
            self._module = None


def _identity(workdir: epath.Path, name: str) -> str:
    """Return the identity of the run of a workdir at a tracker; a new workdir has a new one."""
    path = workdir / FILE
    stored = read_json(path, remedy="delete it to start a new run there") if path.exists() else {}
    if name not in stored:
        seed = f"{workdir.absolute()} {name} {np.random.default_rng().integers(2**63)}"
        stored[name] = hashlib.sha256(seed.encode()).hexdigest()[:16]
        write_json(path, stored)
    return stored[name]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
