"""Speed: python -m tp_jax.bench --what=prepare|evaluate [--seconds=30 --json=FILE]."""

from typing import Annotated

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import define, output_file, required
from tp_jax.values import Range
from tp_jax.values.kinds import Dtype, Images, Path, Size, Word

define("what", Word, None, "prepare: from JPEG to latents; evaluate: from images to statistics")
SECONDS = Annotated[float, Range(0, 10**6)]
define("seconds", SECONDS, 30.0, "how long to measure, after compilation")
define("image_size", Size, 256, "height and width of the images in pixels")
define("batch_size", Images, 64, "batch size over all devices")
define(
    "workers",
    Annotated[int, Range(0, 1024)],
    0,
    "processes that decode images; 0 decodes in threads of this process",
)
define("dtype", Dtype, "float32", "compute dtype of the autoencoder")
define("json", Path, None, "FILE.json for the result")


def main() -> None:
    from tp_jax.performance.bench import BenchOptions, run_bench

    values = flags.FLAGS.flag_values_dict()
    names = ("seconds", "image_size", "batch_size", "workers", "dtype")
    options = {name: values[name] for name in names}
    run_bench(BenchOptions(required("what"), json=output_file("json", ".json"), **options))


if __name__ == "__main__":
    start.run(main, __doc__, required=("what",))
