"""Benchmarks of preparing data and of evaluation, with random weights and images of real sizes.

They run the same code as `tp_jax.prepare` and `tp_jax.evaluate`. Compilation isn't measured.
"""

import dataclasses
import io
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

import tp_jax
from tp_jax.config import default
from tp_jax.data.prepare import encode_images, make_plan
from tp_jax.data.source import Source
from tp_jax.data.sources.latents import LatentsPlan
from tp_jax.data.transforms import decode_pixels
from tp_jax.evals.adm.features import SIDE, Extractor
from tp_jax.evals.adm.reference import compute_statistics
from tp_jax.files.atomic import write_json
from tp_jax.latents.codec import Codec
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from tp_jax.models.inception import Inception
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import create_mesh
from tp_jax.pretrained.autoencoder import LoadedAutoencoder


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """What to measure; the flags of `tp_jax.bench`.

    Attributes:
      what: a key of `BENCHES`.
      seconds: how long to measure after compiling.
      image_size: height and width in pixels.
      batch_size: images per batch, over all devices.
      workers: number of processes that decode images; 0 decodes in threads of this process.
      dtype: dtype of the autoencoder.
      json: a file for the result.
    """

    what: str
    seconds: float = 30.0
    image_size: int = 256
    batch_size: int = 64
    workers: int = 0
    dtype: str = "float32"
    json: epath.Path | None = None


def run_bench(options: BenchOptions) -> dict[str, Any]:
    """Measure images per second and peak memory, print them, and write them if `json` is given.

    Raises:
      UserError: `what` is unknown, or the image size isn't a multiple of 8.
    """
    if options.what not in BENCHES:
        raise UserError(f"--what={options.what!r} is unknown: choose one of {', '.join(BENCHES)}")
    if options.image_size < 8 or options.image_size % 8:
        raise UserError(f"--image_size={options.image_size}: give a multiple of 8")
    rates = BENCHES[options.what](options)
    device, count = jax.devices()[0], jax.device_count()
    result = {
        **rates,
        "images_per_second_per_device": rates["images_per_second"] / count,
        "peak_device_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        # `ru_maxrss` is in KiB on Linux and in bytes on macOS.
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "device": device.device_kind,
        "devices": count,
        "jax": jax.__version__,
        "tp_jax": tp_jax.__version__,
        **{k: v for k, v in dataclasses.asdict(options).items() if k != "json"},
    }
    for name, value in result.items():
        print(f"{name:36}{_as_text(name, value)}")
    if options.json:
        write_json(options.json, result)
    return result


def _as_text(name: str, value: Any) -> str:
    if value is None:
        return "unknown on this device"
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def bench_prepare(options: BenchOptions) -> dict[str, float]:
    """Measure JPEG to records: decode, crop, and encode with both flips by Stable Diffusion's VAE.

    Args:
      options: the options.

    Returns:
      Images per second, and JPEGs decoded per second on one core.
    """
    source, codec, config = _photos(options), _random_codec(options), default()
    config.model.image_size = options.image_size // codec.space.factor
    config.prepare.update(source="photos", batch_size=options.batch_size, skip_corrupt=False)
    config.prepare.records_per_shard = len(source.records)
    config.autoencoder.dtype, config.data.workers = options.dtype, options.workers
    plan: LatentsPlan = make_plan(config, source, codec)

    started, read = time.monotonic(), 0
    while time.monotonic() - started < min(options.seconds / 4, 5):
        decode_pixels(source.records[read]["image"], options.image_size, 3)
        read += 1
    decoding = read / (time.monotonic() - started)
    chosen = np.arange(plan.records)
    records = encode_images(config, source, plan, codec, None, chosen, [0])
    return {
        "images_per_second": _rate(records, options, lambda record: 1),
        "decoded_per_second_on_one_core": decoding,
    }


def bench_evaluate(options: BenchOptions) -> dict[str, float]:
    """Measure uint8 images to the statistics of FID, sFID and Inception Score.

    Args:
      options: the options.

    Returns:
      Images per second of the features, and the seconds from two batches of images to statistics.
    """
    model = Inception()
    shape = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    params = _random_params(jax.eval_shape(model.init, jax.random.key(0), shape)["params"])
    mesh = create_mesh(DATA_PARALLEL)
    extractor = Extractor(
        lambda params, images: model.apply({"params": params}, images),
        params, "adm", "random weights", mesh, options.batch_size,
    )  # fmt: skip
    shape = (options.batch_size, options.image_size, options.image_size, 3)
    batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield batch

    features = extractor.batches(endless())
    rate = _rate(features, options, lambda found: len(found.pool))
    started = time.monotonic()
    compute_statistics(iter([batch] * 2), 2 * len(batch), extractor, "statistics")
    seconds = time.monotonic() - started
    return {"images_per_second": rate, "two_batches_to_statistics_seconds": seconds}


BENCHES: dict[str, Callable[[BenchOptions], dict[str, float]]] = {
    "prepare": bench_prepare,
    "evaluate": bench_evaluate,
}


def _rate(items: Iterator[Any], options: BenchOptions, count: Callable[[Any], int]) -> float:
    """Return images per second, after two batches that compile and fill the pipeline.

    Args:
      items: yields results until the measurement ends.
      options: the options.
      count: the number of images in one item.
    """
    say(f"{options.what}: compiling, then measuring for {options.seconds:g} s …")
    done = 0
    while done < 2 * options.batch_size:
        done += count(next(items))
    started, done = time.monotonic(), 0
    while (seconds := time.monotonic() - started) < options.seconds or done < options.batch_size:
        done += count(next(items))
    return done / seconds


def _random_codec(options: BenchOptions) -> Codec:
    config = AutoencoderConfig()
    model = Autoencoder(config, options.dtype)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = _random_params(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    mesh = create_mesh(DATA_PARALLEL)
    return Codec(LoadedAutoencoder(model, params, config, "random weights"), mesh)


def _random_params(shapes: Any) -> Any:
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = np.float32(np.prod(shape.shape[:-1]) ** -0.5)
        return rng.standard_normal(shape.shape, np.float32) * scale

    return jax.tree.map(leaf, shapes)


class _Photos:
    """Records with the same JPEG each, of a typical ImageNet size."""

    def __init__(self) -> None:
        colours = np.random.default_rng(0).integers(0, 256, (25, 20, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).resize((500, 400), Image.Resampling.BICUBIC).save(buffer, "jpeg")
        self._photo = buffer.getvalue()

    def __len__(self) -> int:
        return 200_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._photo, "label": index % 1000}


def _photos(options: BenchOptions) -> Source:
    return Source(_Photos(), None, 3, tuple(str(label) for label in range(1000)))
