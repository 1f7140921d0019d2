"""Peers: the same model in PyTorch, measured beside ours in a process of its own.

A peer is facebookresearch/DiT from a checkout, or SD3Transformer2DModel of diffusers where it is
installed. This module doesn't import torch; `torch_peers` does, in the peer's process, so that the
threads and the memory of PyTorch and JAX don't mix.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.cli import signals
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.models.dit_config import DiTConfig
from tp_jax.models.mmdit_config import MMDiTConfig
from tp_jax.performance.contenders import plain
from tp_jax.performance.machine import cores
from tp_jax.performance.measure import Contender, Failed, Group
from tp_jax.performance.options import BenchOptions

WAYS = ("eager", "compile")
NAMES = {"dit": "official DiT", "sd3": "diffusers SD3"}
NEEDED = {"dit": ("torch", "timm"), "sd3": ("torch", "diffusers", "transformers")}


@dataclasses.dataclass(frozen=True)
class PeerSpec:
    """What a peer's process computes; it is pickled.

    Attributes:
      kind: "dit" or "sd3".
      job: "train", "forward" or "sample".
      folder: the checkout of the official DiT; "" for diffusers.
      compiled: whether to use `torch.compile`.
      batch_size: samples per batch.
      model: fields of `config.model`.
      sampling: fields of `config.sampling`.
      ema_decay: decay of the average of the parameters.
      threads: number of CPU threads.
    """

    kind: str
    job: str
    folder: str
    compiled: bool
    batch_size: int
    model: dict[str, Any]
    sampling: dict[str, Any]
    ema_decay: float
    threads: int


def check_peers(config: ConfigDict, folder: epath.Path | None) -> None:
    """Check that the peer of `--peer_dit` can be measured.

    Args:
      config: the config.
      folder: the value of `--peer_dit`.

    Raises:
      UserError: the folder isn't a checkout of the official DiT, PyTorch isn't installed, or the
        config describes another model.
    """
    if folder is None:
        return
    for name in ("models.py", "diffusion"):
        if not (folder / name).exists():
            raise UserError(
                f"--peer_dit={folder} has no {name}: name a checkout of "
                f"https://github.com/facebookresearch/DiT"
            )
    missing = [name for name in NEEDED["dit"] if find_spec(name) is None]
    if missing:
        raise UserError(f"--peer_dit needs {', '.join(missing)}: pip install torch timm")
    model = config_lib.model_config(config)
    if not isinstance(model, DiTConfig) or model.condition_kind != "label" or not model.classes:
        raise UserError(
            "--peer_dit measures a dit model with classes: choose such a --config, or leave it out"
        )
    if config.diffusion.kind != "gaussian" or config.sampling.sampler != "ddpm":
        raise UserError(
            f"--peer_dit needs config.diffusion.kind='gaussian' and config.sampling.sampler='ddpm',"
            f" as the official DiT, not {config.diffusion.kind!r} and {config.sampling.sampler!r}"
        )


def base_and_thinking(
    job: str, title: str, contender: Callable[..., Contender], options: BenchOptions
) -> Group:
    """Return a group of the base, its peers, and the model with its thinking layers, if any.

    Args:
      job: "forward" or "sample".
      title: the name of the group.
      contender: (name, config, **fields) -> our contender for the job.
      options: the options.
    """
    name, base = "base", plain(options.config)
    contenders = [contender(name, base)]
    contenders += peer_contenders(job, base, options, compare_to=(name,))
    if options.config.model.thinking.layers:
        contenders.append(contender("with thinking", options.config, compare_to=(name,)))
    return Group(title, tuple(contenders))


def peer_contenders(
    job: str, config: ConfigDict, options: BenchOptions, compare_to: Sequence[str]
) -> list[Contender]:
    """Return the peers of a job; none if there are none for this config.

    Args:
      job: "train", "forward" or "sample".
      config: the config of the base model.
      options: the options.
      compare_to: names of the contenders to compare them to.
    """
    model = config_lib.model_config(config)
    if options.peer_dit:
        kind, folder = "dit", str(options.peer_dit)
    elif isinstance(model, MMDiTConfig):
        kind, folder = "sd3", ""
        missing = [name for name in NEEDED[kind] if find_spec(name) is None]
        if missing and options.peers:
            say(f"no peer: {', '.join(missing)} isn't installed (pip install {' '.join(missing)})")
        if missing:
            return []
    else:
        return []
    spec = PeerSpec(
        kind=kind,
        job=job,
        folder=folder,
        compiled=False,
        batch_size=config.train.batch_size,
        model=config.model.to_dict(),
        sampling=config.sampling.to_dict(),
        ema_decay=config.train.ema_decay,
        threads=cores(),
    )
    return [
        _contender(dataclasses.replace(spec, compiled=way == "compile"), tuple(compare_to))
        for way in options.peers
    ]


def _contender(spec: PeerSpec, compare_to: tuple[str, ...]) -> Contender:
    by = f"{NAMES[spec.kind]}, {'torch.compile' if spec.compiled else 'eager'}"
    return Contender(
        by, lambda: PeerRun(spec), by=by, images=spec.batch_size, compare_to=compare_to
    )


class PeerRun:
    """A `Run` of a peer in its process."""

    def __init__(self, spec: PeerSpec) -> None:
        """Start the process, and wait until the peer has run once.

        Raises:
          Failed: the peer can't run.
        """
        from tp_jax.performance.torch_peers import serve

        signals.before_workers()
        context = multiprocessing.get_context("spawn")
        ours, other = context.Pipe()
        self._connection: Any = ours
        self._process = context.Process(target=serve, args=(other, spec), daemon=True)
        self._process.start()
        other.close()
        self._receive()

    def _receive(self) -> Any:
        try:
            found, error = self._connection.recv()
        except EOFError:
            self._process.join()
            error = f"its process ended with exit code {self._process.exitcode}"
            raise Failed(error) from None
        if error:
            raise Failed(error)
        return found

    def _ask(self, question: tuple[str, Any]) -> Any:
        self._connection.send(question)
        return self._receive()

    def seconds(self, calls: int) -> float:
        """Return the seconds of so many calls, as the peer's process measures them."""
        return self._ask(("seconds", calls))

    def facts(self) -> dict[str, Any]:
        """Return bytes of memory and seconds of compiling."""
        return self._ask(("facts", None))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
