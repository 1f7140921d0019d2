"""Train: python -m tp_jax.main --config=configs/X.py --workdir=W [--config.a.b=v].

Every field of the config is a flag, such as --config.train.steps=2000. configs/README.md explains
the configs, and where all their fields are documented.
"""

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import Names, define, define_config, output_folder
from tp_jax.values.kinds import Path

define_config("a config file, such as configs/quickstart.py")
define("workdir", Path, None, "folder for checkpoints, metrics and samples")
define(
    "allow_unchecked",
    bool,
    False,
    "resume from a checkpoint whose checksums are missing or damaged, without checking its files",
)
define(
    "allow_change",
    Names,
    (),
    "fields or sections of the config, or classes, images, latents, autoencoder, text, that may "
    "change when a run resumes, though this makes it another run",
)


def main() -> None:
    from tp_jax.train.loop import train

    train(
        start.required_config(),
        output_folder("workdir"),
        allow_unchecked=flags.FLAGS.allow_unchecked,
        allow_change=flags.FLAGS.allow_change,
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("config", "workdir"), saves_on_sigterm=True)
