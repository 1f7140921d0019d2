"""Scores: python -m tp_jax.evaluate --suite=adm --samples=FILE.npz|DIR --reference=FILE …

With --sweep it scores a workdir instead: every guidance scale with every number of latent steps,
and the base model beside them.
"""

from absl import flags
from etils import epath

from tp_jax import cli
from tp_jax.evals import run_suite
from tp_jax.evals.task import Task
from tp_jax.sweeping import Sweep, run_sweep

flags.DEFINE_string("suite", "adm", "adm: FID, sFID, Inception Score, precision, recall")
flags.DEFINE_string("samples", None, "FILE.npz with arr_0 (uint8, NHWC), or a folder of PNGs")
flags.DEFINE_string("reference", None, "published statistics, images, or a saved statistics file")
flags.DEFINE_string("inception", None, "a folder written by tp_jax.convert --kind=inception")
flags.DEFINE_string("protocol", "adm", "adm or pytorch-fid: how images are resized for Inception")
flags.DEFINE_string("out", None, "FILE.json for the scores; a folder for --sweep")
flags.DEFINE_string("save_statistics", None, "FILE.npz, to be a --reference later")
flags.DEFINE_integer("batch_size", 64, "images at once; doesn't change the scores", 1)
flags.DEFINE_integer("num", None, "the first so many samples, all by default; 50000 for --sweep")

flags.DEFINE_boolean("sweep", False, "score a workdir over guidance scales and latent steps")
flags.DEFINE_string("workdir", None, "--sweep: a folder that was trained in")
flags.DEFINE_list("guidance_scales", ["1", "1.25", "1.5", "2", "3"], "--sweep: as 1,1.5,2")
flags.DEFINE_list("latent_steps", ["1", "2", "4"], "--sweep: T of the recursion, as 1,2,4")
flags.DEFINE_integer("seed", 0, "--sweep: of the noise of all cells", 0, 2**32 - 1)
flags.DEFINE_integer("checkpoint", None, "--sweep: its train_step; the newest by default")
flags.DEFINE_string("base", None, "--sweep: base checkpoint or workdir; what it began from")
flags.DEFINE_string(
    "autoencoder", None, "--sweep: the folder that decodes; the config's by default"
)

flags.DEFINE_integer("sampler_steps", None, "--sweep: number of sampler steps")
flags.DEFINE_integer("guidance_channels", None, "--sweep: first channels that are guided")
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "--sweep: that the model computes in")
flags.DEFINE_enum(
    "matmul_precision", None, ["default", "high", "highest"], "--sweep: on TPUs and GPUs"
)


def main() -> None:
    values = flags.FLAGS.flag_values_dict()
    if values["sweep"]:
        sweep(values)
        return
    run_suite(
        values["suite"],
        Task(
            samples=epath.Path(cli.required("samples")),
            inception=epath.Path(cli.required("inception")),
            **{
                name: epath.Path(values[name]) if values[name] else None
                for name in ("reference", "out", "save_statistics")
            },
            **{name: values[name] for name in ("protocol", "batch_size", "num")},
        ),
    )


def sweep(values: dict) -> None:
    names = (
        "seed", "batch_size", "protocol", "checkpoint", "base", "autoencoder", "dtype",
        "matmul_precision",
    )  # fmt: skip
    run_sweep(
        Sweep(
            **{
                name: epath.Path(cli.required(name))
                for name in ("workdir", "out", "reference", "inception")
            },
            guidance_scales=cli.numbers("guidance_scales"),
            latent_steps=cli.integers("latent_steps"),
            sampler_changes={
                name: values[flag]
                for name, flag in (("steps", "sampler_steps"), ("guidance_channels",) * 2)
                if values[flag] is not None
            },
            num=50_000 if values["num"] is None else values["num"],
            **{name: values[name] for name in names},
        )
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
