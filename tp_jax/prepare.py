"""Prepare: python -m tp_jax.prepare --config=configs/X.py [--workdir=W] [--config.a.b=v]."""

from absl import flags
from etils import epath
from ml_collections import config_flags

from tp_jax.cli import start
from tp_jax.cli.flags import required

config_flags.DEFINE_config_file("config", None, "a config file, such as configs/imagenet256.py")
flags.DEFINE_string("workdir", None, "folder for the latents; config.data.dir by default")


def main() -> None:
    from tp_jax.data.prepare import prepare

    config = start.required_config()
    folder = flags.FLAGS.workdir or config.data.dir
    prepare(config, epath.Path(folder or required("workdir")))


if __name__ == "__main__":
    start.run(main, __doc__, required=("config",))
