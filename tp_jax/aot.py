"""Compile ahead of time: python -m tp_jax.aot --config=configs/X.py --topology=v5e:4x4.

Compiles for a TPU slice on a machine without TPUs, and prints for each chip its memory, FLOPs,
communication and an upper bound on speed.
"""

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import define, define_config, output_file, required
from tp_jax.values.kinds import Path, Size, Word

define_config("a config file, such as configs/imagenet256.py")
define("topology", Word, None, "KIND:SHAPE of a slice in chips, such as v5e:4x4 or v5p:4x4x8")
define("slices", Size, 1, "number of such slices; sets config.mesh.slices")
define(
    "job",
    Word,
    "train",
    "train: one training step; sample: one batch of config.train.batch_size samples",
)
define(
    "full",
    bool,
    False,
    "compile with all optimizations, as training does; takes about four times as long",
)
define(
    "advise",
    bool,
    True,
    "if the program doesn't fit into memory, search for a config change that makes it fit",
)
define("json", Path, None, "FILE.json for the report")


def main() -> None:
    from tp_jax.performance.aot import AotOptions, run_aot

    values = flags.FLAGS.flag_values_dict()
    run_aot(
        AotOptions(
            start.required_config(),
            required("topology"),
            json=output_file("json", ".json"),
            **{name: values[name] for name in ("slices", "job", "full", "advise")},
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("config", "topology"), processes=False)
