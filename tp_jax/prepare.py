"""Prepare: python -m tp_jax.prepare --config=configs/X.py [--workdir=W] [--config.a.b=v]."""

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import define, define_config, output_folder
from tp_jax.values.kinds import Path

define_config("a config file, such as configs/imagenet256.py")
define("workdir", Path, None, "folder for the latents; config.data.dir by default")


def main() -> None:
    from tp_jax.data.prepare import prepare

    given = flags.FLAGS.workdir
    prepare(start.required_config(), output_folder("workdir") if given else None)


if __name__ == "__main__":
    start.run(main, __doc__, required=("config",))
