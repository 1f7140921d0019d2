"""Metrics of a window of steps, for TensorBoard and as lines on the terminal."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.parallel.chips import find_chip
from tp_jax.train.loss import Metrics

# Their mean over experts would say nothing; TensorBoard gets one curve for each expert.
PER_EXPERT = "expert_use/"


def open_writer(workdir: epath.Path) -> Any:
    """clu's writer to TensorBoard files in the workdir; nothing on processes but the first.

    Raises:
      UserError: TensorFlow, which clu writes with, isn't installed.
    """
    try:
        from clu import metric_writers
    except ImportError as error:
        raise UserError(
            f"training writes TensorBoard files with TensorFlow ({error}): "
            f"pip install 'tp_jax[train]'"
        ) from error
    writers = [] if jax.process_index() else [metric_writers.SummaryWriter(str(workdir))]
    return metric_writers.AsyncMultiWriter(writers)


class Window:
    """Metrics since the last line, kept on the device until they are asked for."""

    def __init__(self, flops_per_step: float, batch_size: int, seconds: float) -> None:
        """`seconds` is the time already spent training, in earlier starts of the run."""
        self._flops, self._batch_size = flops_per_step, batch_size
        self._metrics: list[tuple[int, Metrics]] = []
        self._timed = 0
        self.seconds, self._window_seconds, self._since = seconds, 0.0, time.monotonic()

    def pause(self) -> None:
        """Stops the clock, for saving and sampling."""
        self._window_seconds += time.monotonic() - self._since
        self.seconds += time.monotonic() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for the block."""
        self.pause()
        yield
        self.resume()

    def resume(self) -> None:
        """Starts the clock again."""
        self._since = time.monotonic()

    def leave_out_compilation(self) -> None:
        """Waits for the first step, and takes its time out of the window's rates."""
        self.check_finite()
        self.pause()
        self._window_seconds, self._timed = 0.0, len(self._metrics)
        self.resume()

    def add(self, train_step: int, metrics: Metrics) -> None:
        """Takes the metrics of one update, which may still be under way."""
        self._metrics.append((train_step, metrics))

    def check_finite(self) -> None:
        """Waits for all updates so far.

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
        """Means over the window, rates, and an empty window for what follows."""
        self.check_finite()
        self.pause()
        values = jax.device_get([metrics for _, metrics in self._metrics])
        means = {name: np.mean([v[name] for v in values], axis=0) for name in values[0]}
        # A window of the compiling step alone has no time of its own.
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
    """Flat scalars for TensorBoard: each expert's share becomes one of its own."""
    flat = {}
    for name, value in means.items():
        if name.startswith(PER_EXPERT):
            flat |= {f"{name}/expert_{i}": float(share) for i, share in enumerate(value)}
        else:
            flat[name] = float(value)
    return flat


def line(train_step: int, steps: int, means: dict[str, Any]) -> str:
    """One terminal line: what a person watching wants to know."""
    parts = [
        f"step {train_step:>{len(str(steps))}}/{steps}",
        f"loss {means['loss']:.4f}",
        f"grad {means['grad_norm']:.3f}",
        f"{means['images_per_second']:,.0f} img/s",
    ]
    if "model_flops_utilisation" in means:
        parts.append(f"MFU {means['model_flops_utilisation']:.1%}")
    else:
        parts.append(f"{means['model_tflops_per_second']:.3f} TFLOP/s")
    entropy = [value for name, value in means.items() if name.startswith("gate_entropy/")]
    if entropy:
        parts.append(f"gate entropy {np.mean(entropy):.3f}")
    use = {n.rsplit("_", 1)[-1]: v for n, v in means.items() if n.startswith(PER_EXPERT)}
    if use:
        parts.append("experts " + " ".join(f"{n}:{_shares(use[n])}" for n in sorted(use, key=int)))
    parts.append(f"left {duration((steps - train_step) * means['seconds_per_step'])}")
    return "  ".join(parts)


def _shares(use: np.ndarray) -> str:
    if len(use) <= 4:
        return "/".join(f"{share:.0%}" for share in use)
    return f"{use.min():.1%}..{use.max():.1%}"


def duration(seconds: float) -> str:
    """Seconds as 1d02h, 3h04m, 5m06s or 7s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
