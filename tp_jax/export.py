"""Export: python -m tp_jax.export --workdir=W --out=DIR [--format=tp_jax|diffusers|dit] | --verify.

Writes .safetensors files of a trained model, or of converted weights. publish/README.md explains
the formats.
"""

from typing import Annotated

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import define, output_folder, required_path
from tp_jax.values import Choice
from tp_jax.values.kinds import CountOrZero, Path, Positive, Source, Word

define("workdir", Source, None, "workdir of a training run, or folder of converted weights")
define("out", Path, None, "a new or empty folder")
define(
    "format",
    Annotated[str, Choice("tp_jax", "diffusers", "dit")],
    "tp_jax",
    "tp_jax: the whole model, which all commands load; diffusers: DiT, SD3 or autoencoder; dit: "
    "the layout of facebookresearch/DiT; the last two without thinking",
)
define("checkpoint", CountOrZero, None, "train_step of the checkpoint; the newest by default")
define("ema", bool, True, "export the EMA parameters; --noema (or --no-ema) the trained ones")
define(
    "dtype",
    Annotated[str, Choice("float32", "bfloat16", "float16")],
    "float32",
    "of the weights in the formats diffusers and dit",
)
define(
    "with_base",
    bool,
    None,
    "include the base in the format tp_jax; by default unless it was frozen in training",
)
define("shard_gigabytes", Positive, 5.0, "largest size of a file in the format diffusers")
define(
    "allow_unchecked",
    bool,
    False,
    "use a checkpoint whose checksums are missing or damaged, without checking its files",
)
define("verify", bool, False, "only compare the files of --workdir with their SHA-256")
define("push", Word, "", "OWNER/NAME on the Hugging Face Hub to upload the folder to")
define("license", Word, "", "license of the weights, for the model card, such as apache-2.0")
define(
    "scores",
    Path,
    None,
    "scores.json of tp_jax.evaluate, or a folder with several, for the model card; empty is none",
)
define("private", bool, False, "make a new repository on the Hub private")


def main() -> None:
    from tp_jax.publish.export import Export, export
    from tp_jax.workdir.verify import verify

    if flags.FLAGS["verify"].value:
        verify(required_path("workdir"))
        return
    values = flags.FLAGS.flag_values_dict()
    names = (
        "format", "checkpoint", "ema", "dtype", "with_base", "shard_gigabytes", "allow_unchecked",
        "push", "license", "scores", "private",
    )  # fmt: skip
    export(
        Export(
            workdir=required_path("workdir"),
            out=output_folder("out"),
            **{name: values[name] for name in names},
        )
    )


def required_flags() -> tuple[str, ...]:
    """Return the flags that must be given."""
    return ("workdir",) if flags.FLAGS["verify"].value else ("workdir", "out")


if __name__ == "__main__":
    start.run(main, __doc__, required=required_flags, processes=False)
