"""Metrics of a window of train steps, for writers such as TensorBoard and for the terminal."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.parallel.chips import find_chip
from tp_jax.train.loss import Metrics

# Metrics with one value per expert; TensorBoard gets one curve for each expert.
EXPERT_USE = "expert_use/"
PER_EXPERT = (EXPERT_USE, "drawn_expert_use/")
# Events reach the disk at least this often.
FLUSH_SECONDS = 30


class Writer(Protocol):
    """What curves, images and texts are written to; see `TensorBoardWriter`."""

    def write_scalars(self, train_step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        ...

    def write_images(self, train_step: int, images: Mapping[str, np.ndarray]) -> None:
        """Add images, uint8 [H, W, 1 or 3]."""
        ...

    def write_texts(self, train_step: int, texts: Mapping[str, str]) -> None:
        """Add texts in Markdown."""
        ...

    def close(self) -> None:
        """Wait until everything is written."""
        ...


class TensorBoardWriter:
    """Writes scalars, images and texts to TensorBoard files in a workdir, from a thread.

    If the files can't be written, it warns once, and tries again with the next events.
    """

    def __init__(self, workdir: epath.Path) -> None:
        """Open the files; processes other than the first write nothing.

        Raises:
          UserError: tensorboardX isn't installed.
        """
        try:
            from tensorboardX import SummaryWriter

            from tp_jax.train import curves
        except ImportError as error:
            raise UserError(
                f"training writes TensorBoard files with tensorboardX ({error}): "
                f"pip install -e '.[train]'"
            ) from error
        self._writer = None
        if jax.process_index() == 0:
            folder = curves.tolerant_path(workdir)
            self._writer = SummaryWriter(folder, flush_secs=FLUSH_SECONDS)

    def write_scalars(self, train_step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        if self._writer:
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, train_step)

    def write_images(self, train_step: int, images: Mapping[str, np.ndarray]) -> None:
        """Add images, uint8 [H, W, 1 or 3]."""
        if self._writer:
            for tag, image in images.items():
                self._writer.add_image(tag, image, train_step, dataformats="HWC")

    def write_texts(self, train_step: int, texts: Mapping[str, str]) -> None:
        """Add texts in Markdown."""
        if self._writer:
            for tag, text in texts.items():
                self._writer.add_text(tag, text, train_step)

    def close(self) -> None:
        """Wait until everything is written."""
        if self._writer:
            self._writer.close()


class Window:
    """The metrics since the last report, kept on the device until they are needed.

    Attributes:
      seconds: seconds of training so far, in all starts of the run.
      compile_seconds: seconds until the end of the first step of this start.
    """

    def __init__(self, flops_per_step: float, batch_size: int, seconds: float) -> None:
        """Start the clock.

        Args:
          flops_per_step: model FLOPs of one train step, over all devices.
          batch_size: images per train step.
          seconds: seconds of training in earlier starts of the run.
        """
        self._flops, self._batch_size = flops_per_step, batch_size
        self._metrics: list[tuple[int, Metrics]] = []
        self._timed = 0
        self.compile_seconds = 0.0
        self.seconds, self._window_seconds, self._since = seconds, 0.0, time.monotonic()

    def pause(self) -> None:
        """Stop the clock, for saving and sampling."""
        self._window_seconds += time.monotonic() - self._since
        self.seconds += time.monotonic() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside a `with` block."""
        self.pause()
        yield
        self.resume()

    def resume(self) -> None:
        """Start the clock again."""
        self._since = time.monotonic()

    def leave_out_compilation(self) -> None:
        """Wait for the first step, and exclude it from the rates of the window."""
        self.check_finite()
        self.pause()
        self.compile_seconds = self._window_seconds
        self._window_seconds, self._timed = 0.0, len(self._metrics)
        self.resume()

    def add(self, train_step: int, metrics: Metrics) -> None:
        """Add the metrics of one train step, which may still be running on the device."""
        self._metrics.append((train_step, metrics))

    def check_finite(self) -> None:
        """Wait for all train steps so far.

        Raises:
          TrainingError: a loss or gradient of the window isn't finite, naming the first.
        """
        for train_step, metrics in self._metrics:
            loss, norm = jax.device_get((metrics["loss"], metrics["grad_norm"]))
            if not np.isfinite(loss) or not np.isfinite(norm):
                raise TrainingError(
                    f"train_step {train_step}: loss {loss}, gradient norm {norm}: not finite, so "
                    f"training stops. Start again from the last checkpoint with a lower "
                    f"config.optimizer.learning_rate or with config.optimizer.clip_norm"
                )

    def close(self) -> dict[str, Any]:
        """Return the means and rates of the window, and start a new window."""
        self.check_finite()
        self.pause()
        values = jax.device_get([metrics for _, metrics in self._metrics])
        means = {name: np.mean([v[name] for v in values], axis=0) for name in values[0]}
        # If the window holds only the step that was compiled, its time is unknown.
        timed = max(len(values) - self._timed, 1)
        rate = timed / max(self._window_seconds, 1e-9)
        means["images_per_second"] = rate * self._batch_size
        means["model_tflops_per_second"] = rate * self._flops / 1e12
        chip = find_chip(jax.devices()[0].device_kind)
        if chip:
            peak = chip.peak_flops * jax.device_count()
            means["model_flops_utilisation"] = rate * self._flops / peak
        means["seconds_per_step"] = 1 / rate
        self._metrics, self._window_seconds, self._timed = [], 0.0, 0
        self.resume()
        return means


def scalars(means: dict[str, Any]) -> dict[str, float]:
    """Return scalars for TensorBoard, with one scalar per expert for its share of the tokens."""
    flat = {}
    for name, value in means.items():
        if name.startswith(PER_EXPERT):
            flat |= {f"{name}/expert_{i}": float(share) for i, share in enumerate(value)}
        else:
            flat[name] = float(value)
    return flat


# Columns of the report on the terminal: title and width. The last column has no fixed width.
COLUMNS = (
    ("step", 13), ("time left", 9), ("loss", 8), ("grad norm", 9), ("images/s", 8), ("MFU", 6),
    ("gate entropy", 12), ("expert use", 0),
)  # fmt: skip
MAX_WIDTH = 120


def header() -> str:
    """Return the titles of the columns of `line`."""
    return _aligned([title for title, _ in COLUMNS])


def line(train_step: int, steps: int, means: dict[str, Any]) -> str:
    """Return one report on a window of train steps, at most `MAX_WIDTH` characters wide.

    Args:
      train_step: the last train step of the window.
      steps: number of train steps of the run.
      means: from `Window.close`.
    """
    entropy = [value for name, value in means.items() if name.startswith("gate_entropy/")]
    utilisation = means.get("model_flops_utilisation")
    cells = [
        f"{train_step}/{steps}",
        duration((steps - train_step) * means["seconds_per_step"]),
        f"{means['loss']:.4f}",
        f"{means['grad_norm']:.3f}",
        f"{means['images_per_second']:,.0f}",
        "-" if utilisation is None else f"{utilisation:.1%}",
        f"{np.mean(entropy):.3f}" if entropy else "-",
    ]
    start = _aligned([*cells, ""])
    use = {int(n.rsplit("_", 1)[-1]): v for n, v in means.items() if n.startswith(EXPERT_USE)}
    return (start + _expert_use(use, MAX_WIDTH - len(start))).rstrip()


def _aligned(cells: list[str]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def _expert_use(use: dict[int, np.ndarray], width: int) -> str:
    """Return each block's shares of its experts in percent; only the range where that is long."""
    blocks = [
        f"block {block} {'/'.join(f'{100 * share:.0f}' for share in use[block])}%"
        for block in sorted(use)
    ]
    text = ", ".join(blocks)
    if len(text) <= width:
        return text
    shares = 100 * np.concatenate(list(use.values()))
    return f"{len(use)} blocks {shares.min():.0f} to {shares.max():.0f}%"


def duration(seconds: float) -> str:
    """Format seconds as 1d02h, 3h04m, 5m06s or 7s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
