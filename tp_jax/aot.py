"""Compile ahead of time: python -m tp_jax.aot --config=configs/X.py --topology=v5e:4x4.

Compiles for a TPU slice on a machine without TPUs, and prints for each chip its memory, FLOPs,
communication and an upper bound on speed.
"""

from absl import flags
from etils import epath
from ml_collections import config_flags

from tp_jax.cli import start
from tp_jax.cli.flags import required

config_flags.DEFINE_config_file("config", None, "a config file, such as configs/imagenet256.py")
flags.DEFINE_string(
    "topology", None, "KIND:SHAPE of a slice in chips, such as v5e:4x4 or v5p:4x4x8"
)
flags.DEFINE_integer("slices", 1, "number of such slices; sets config.mesh.slices")
flags.DEFINE_string(
    "job", "train", "train: one training step; sample: one batch of config.train.batch_size samples"
)
flags.DEFINE_boolean(
    "full",
    False,
    "compile with all optimizations, as training does; takes about four times as long",
)
flags.DEFINE_boolean(
    "advise",
    True,
    "if the program doesn't fit into memory, search for a config change that makes it fit",
)
flags.DEFINE_string("json", None, "FILE.json for the report")


def main() -> None:
    from tp_jax.performance.aot import AotOptions, run_aot

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
    start.run(main, __doc__, required=("config", "topology"), processes=False)
