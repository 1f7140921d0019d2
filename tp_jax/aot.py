"""Compile for a TPU that isn't here: python -m tp_jax.aot --config=configs/X.py --topology=v5e:4x4.

Prints memory, FLOPs, exchanges and a bound on speed, for each chip.
"""

from absl import flags
from etils import epath
from ml_collections import config_flags

from tp_jax.cli import start
from tp_jax.cli.flags import required
from tp_jax.performance.aot import AotOptions, run_aot

config_flags.DEFINE_config_file("config", None, "a config file, as configs/imagenet256.py")
flags.DEFINE_string("topology", None, "KIND:SHAPE of a slice in chips, as v5e:4x4 or v5p:4x4x8")
flags.DEFINE_integer("slices", 1, "how many such slices; becomes config.mesh.slices")
flags.DEFINE_string("job", "train", "train: an update; sample: a batch of config.train.batch_size")
flags.DEFINE_boolean("full", False, "compile as a run does, which takes some four times as long")
flags.DEFINE_boolean("advise", True, "where it doesn't fit, look for a change that does")
flags.DEFINE_string("json", None, "FILE.json for the report")


def main() -> None:
    values = flags.FLAGS.flag_values_dict()
    run_aot(
        AotOptions(
            start.required_config(),
            required("topology"),
            json=epath.Path(values["json"]) if values["json"] else None,
            **{name: values[name] for name in ("slices", "job", "full", "advise")},
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, processes=False)
