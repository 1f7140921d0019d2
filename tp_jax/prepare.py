"""Prepare: python -m tp_jax.prepare --config=configs/X.py [--workdir=W] [--config.a.b=v]."""

from absl import flags
from etils import epath
from ml_collections import config_flags

from tp_jax import cli
from tp_jax.preparation import prepare

config_flags.DEFINE_config_file("config", None, "a config file, as configs/imagenet256.py")
flags.DEFINE_string("workdir", None, "the folder for the latents; config.data.dir by default")


def main() -> None:
    config = cli.required_config()
    folder = flags.FLAGS.workdir or config.data.dir
    prepare(config, epath.Path(folder or cli.required("workdir")))


if __name__ == "__main__":
    cli.run(main, __doc__)
