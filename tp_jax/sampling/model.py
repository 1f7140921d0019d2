"""The Python interface: load the model of a workdir, sample from it, and trace its routing."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.parallel.mesh import padded_batch_size
from tp_jax.pictures.grids import to_uint8
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded, load, without_thinking
from tp_jax.sampling.plan import SamplePlan, plan_samples
from tp_jax.sampling.request import make_generator, say_untrained_latent_steps
from tp_jax.sampling.thinking_pictures import ThinkingPictures, picture_thinking
from tp_jax.thinking import ThinkingConfig
from tp_jax.values import checked
from tp_jax.values.kinds import Images, NonNegative, Seed
from tp_jax.workdir.changes import read_class_names


@dataclasses.dataclass(frozen=True)
class Routing:
    """Which expert the gate chose for each token, while images were sampled.

    S sampler steps, T latent steps, B images, N vision tokens, M experts. Token n of a grid with w
    tokens per row is at row n // w and column n % w. Guided sampling also computes an unconditional
    prediction; the routing is that of the conditional one.

    Attributes:
      images: [B, H, W, C] uint8, the images that were sampled.
      timesteps: [S] float32, the diffusion timestep of each sampler step, in 0 … 1000.
      experts: {block: [S, T, B, N] int32}, the chosen expert; M for tokens that have halted.
      probabilities: {block: [S, T, B, N, M] float32}, the gate's probabilities,
        softmax(logits / temperature).
      grid: number of rows and of columns of vision tokens.
      tokens: {block: [S, T, B, N, D]}, the tokens ã⁰ … ã^{T-1} that enter the latent steps; empty
        unless asked for.
    """

    images: np.ndarray
    timesteps: np.ndarray
    experts: dict[int, np.ndarray]
    probabilities: dict[int, np.ndarray]
    grid: tuple[int, int]
    tokens: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


class Model:
    """A trained model, ready to sample.

    Example:
      >>> import tp_jax
      >>> model = tp_jax.Model.load("runs/quickstart")  # doctest: +SKIP
      >>> images = model.sample(labels=[3, 5, 8], seed=0)  # doctest: +SKIP
      >>> routing = model.trace(labels=[3, 5, 8], seed=0)  # doctest: +SKIP

    Attributes:
      loaded: the network, its config, its parameters and the devices that it runs on.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Wrap a loaded model; use `Model.load` to load one from a workdir."""
        self.loaded = loaded
        self._generators: dict[Any, tuple[Loaded, Generator]] = {}

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike[str],
        checkpoint: int | None = None,
        *,
        ema: bool = True,
        dtype: str | None = None,
        autoencoder: str | None = None,
        text: str | None = None,
        truncate: bool = False,
        allow_unchecked: bool = False,
    ) -> "Model":
        """Load the model of a workdir onto all devices of this machine.

        Args:
          workdir: a local folder or a gs:// path; a leading ~ is the home folder.
          checkpoint: train step of the checkpoint; by default the newest one.
          ema: load the moving average of the parameters; if False, the parameters themselves.
          dtype: compute dtype of the model, "float32" or "bfloat16"; by default the config's.
          autoencoder: folder of the autoencoder that decodes the latents; by default the config's.
          text: folder of the text encoders; by default the config's.
          truncate: cut prompts that are too long for the encoder, with a warning.
          allow_unchecked: accept a checkpoint whose checksums are missing or damaged.

        Raises:
          UserError: the workdir, the checkpoint or the autoencoder doesn't exist or doesn't fit.
        """
        with _without_warnings():
            loaded = load(
                workdir,
                checkpoint,
                ema=ema,
                dtype=dtype,
                autoencoder=autoencoder,
                text=text,
                truncate=truncate,
                allow_unchecked=allow_unchecked,
            )
        return cls(loaded)

    @property
    def thinking(self) -> ThinkingConfig:
        """Where and how the model thinks: its blocks, experts and latent steps."""
        return self.loaded.built.model.thinking

    @property
    def train_step(self) -> int:
        """The train step of the checkpoint."""
        return self.loaded.train_step

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; empty if the run has none."""
        return read_class_names(self.loaded.workdir)

    def sample(
        self,
        num: int | None = None,
        *,
        labels: Sequence[int] = (),
        prompts: Sequence[str] = (),
        negative_prompt: str = "",
        seed: int = 0,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        sampler_steps: int | None = None,
        latent_steps: int | None = None,
        halting_epsilon: float | None = None,
        thinking: bool = True,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Sample images. The same seed and index give the same image, whatever the batch size.

        Args:
          num: number of images; by default one per label or prompt, or one per class.
          labels: classes to cycle through; all classes if empty.
          prompts: prompts to cycle through, for models that are conditioned on text.
          negative_prompt: the prompt that guidance moves away from.
          seed: seed of the noise.
          guidance_scale: classifier-free guidance scale; by default the config's.
          sampler: a key of `tp_jax.diffusion.samplers.SAMPLERS`; by default the config's.
          sampler_steps: number of sampler steps; by default the config's.
          latent_steps: number T of latent steps; by default that of training.
          halting_epsilon: a token halts when it moves by this part of its length or less; by
            default tokens halt as the config says.
          thinking: if False, sample from the base model only.
          height, width: of the images in pixels; by default the size of training.
          batch_size: images per batch; rounded up to a multiple of the number of devices.

        Returns:
          [num, H, W, C] uint8.

        Raises:
          UserError: the model doesn't support something that was requested.
        """
        plan = self._plan(num, labels, prompts, negative_prompt, seed)
        changes = dict(guidance_scale=guidance_scale, sampler=sampler, steps=sampler_steps)
        loaded, generator = self._generator(
            changes, latent_steps, thinking, height, width, batch_size, halting_epsilon
        )
        batches = generator.batches(loaded.params, plan.conditions, seed, rows=plan.rows)
        return to_uint8(np.concatenate(list(batches)))

    def trace(
        self,
        num: int | None = None,
        *,
        labels: Sequence[int] = (),
        prompts: Sequence[str] = (),
        negative_prompt: str = "",
        seed: int = 0,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        sampler_steps: int | None = None,
        latent_steps: int | None = None,
        halting_epsilon: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
        tokens: bool = False,
    ) -> Routing:
        """Sample images as `sample` does, and record the gate's choices at every sampler step.

        This costs one more prediction of the model per sampler step. `tp_jax.analysis` has
        statistics of the result.

        Args:
          num, labels, prompts, negative_prompt, seed, guidance_scale, sampler, sampler_steps,
          latent_steps, halting_epsilon, height, width, batch_size: as for `sample`.
          tokens: also return the tokens that enter the latent steps, D numbers for each choice.

        Raises:
          UserError: the model has no thinking layers, or doesn't support something that was
            requested.
        """
        self._check_thinks()
        plan = self._plan(num, labels, prompts, negative_prompt, seed)
        changes = dict(guidance_scale=guidance_scale, sampler=sampler, steps=sampler_steps)
        loaded, generator = self._generator(
            changes, latent_steps, True, height, width, batch_size, halting_epsilon
        )
        images, timesteps, routing = generator.trace_all(
            loaded.params, plan.conditions, seed, plan.rows, tokens=tokens
        )
        return Routing(
            images=to_uint8(images),
            timesteps=timesteps,
            experts={block: trace.expert for block, trace in routing.items()},
            probabilities={block: trace.probabilities for block, trace in routing.items()},
            grid=generator.grid,
            tokens={block: trace.tokens for block, trace in routing.items()} if tokens else {},
        )

    def picture_thinking(
        self,
        num: int | None = None,
        *,
        labels: Sequence[int] = (),
        prompts: Sequence[str] = (),
        negative_prompt: str = "",
        seed: int = 0,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        sampler_steps: int | None = None,
        latent_steps: int | None = None,
        halting_epsilon: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
    ) -> ThinkingPictures:
        """Draw what thinking changes: the base and 1 … T latent steps, from the same noise.

        Args:
          num, labels, prompts, negative_prompt, seed, guidance_scale, sampler, sampler_steps,
          latent_steps, halting_epsilon, height, width, batch_size: as for `sample`; at most
            `thinking_pictures.SAMPLES` images are shown.

        Raises:
          UserError: the model has no thinking layers, or doesn't support something that was
            requested.
        """
        self._check_thinks()
        plan = self._plan(num, labels, prompts, negative_prompt, seed)
        changes = dict(guidance_scale=guidance_scale, sampler=sampler, steps=sampler_steps)
        loaded, generator = self._generator(
            changes, latent_steps, True, height, width, batch_size, halting_epsilon
        )
        return picture_thinking(loaded, generator, plan, seed)

    def _check_thinks(self) -> None:
        if not self.thinking.layers:
            raise UserError("config.model.thinking.layers is empty: the model has no routing")

    def _plan(
        self,
        num: int | None,
        labels: Sequence[int],
        prompts: Sequence[str],
        negative_prompt: str,
        seed: int,
    ) -> SamplePlan:
        checked("seed", seed, Seed)
        for name, values in (("labels", labels), ("prompts", prompts)):
            if isinstance(values, str | int):
                raise UserError(f"{name}={values!r}: give a list, such as [{values!r}]")
        if num is None and not prompts:
            num = len(labels) or self.loaded.built.model.classes or 1
        if num is not None:
            checked("num", num, Images)
        labels = checked("labels", np.asarray(labels).tolist(), tuple[int, ...])
        return plan_samples(
            self.loaded, num, labels=labels, prompts=prompts, negative_prompt=negative_prompt
        )

    def _generator(
        self,
        changes: dict[str, Any],
        latent_steps: int | None,
        thinking: bool,
        height: int | None,
        width: int | None,
        batch_size: int,
        halting_epsilon: float | None,
    ) -> tuple[Loaded, Generator]:
        """Return a model and its generator, which keeps its compiled program for later calls."""
        checked("batch_size", batch_size, Images)
        batch_size = padded_batch_size(self.loaded.mesh, batch_size)
        if halting_epsilon is not None:
            checked("halting_epsilon", halting_epsilon, NonNegative)
        key = (
            *changes.values(),
            latent_steps,
            thinking,
            height,
            width,
            batch_size,
            halting_epsilon,
        )
        if key not in self._generators:
            loaded = self.loaded if thinking else without_thinking(self.loaded)[0]
            say_untrained_latent_steps(loaded, [latent_steps])
            generator = make_generator(
                loaded, changes, batch_size, latent_steps, height, width, halting_epsilon
            )
            self._generators[key] = loaded, generator
        return self._generators[key]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide Orbax's warnings about situations that need no action; it raises its errors."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
