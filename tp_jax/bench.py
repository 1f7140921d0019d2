"""Speed: python -m tp_jax.bench --what=prepare|evaluate [--seconds=30 --json=FILE]."""

from absl import flags
from etils import epath

from tp_jax.cli import start
from tp_jax.cli.flags import required

flags.DEFINE_string(
    "what", None, "prepare: from JPEG to latents; evaluate: from images to statistics"
)
flags.DEFINE_float("seconds", 30, "how long to measure, after compilation")
flags.DEFINE_integer("image_size", 256, "height and width of the images in pixels")
flags.DEFINE_integer("batch_size", 64, "batch size over all devices", 1)
flags.DEFINE_integer(
    "workers", 0, "processes that decode images; 0 decodes in threads of this process"
)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "compute dtype of the autoencoder")
flags.DEFINE_string("json", None, "FILE.json for the result")


def main() -> None:
    from tp_jax.performance.bench import BenchOptions, run_bench

    values = flags.FLAGS.flag_values_dict()
    names = ("seconds", "image_size", "batch_size", "workers", "dtype")
    out = epath.Path(values["json"]) if values["json"] else None
    run_bench(BenchOptions(required("what"), json=out, **{name: values[name] for name in names}))


if __name__ == "__main__":
    start.run(main, __doc__, required=("what",))
