"""Export: python -m tp_jax.export --workdir=W --out=DIR [--format=tp_jax|diffusers|dit] | --verify.

Writes .safetensors files of a trained model, or of converted weights; publish/README.md explains
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
# The other flags are the fields of `Export` with these names.
FIELDS = (
    ("format", Annotated[str, Choice("tp_jax", "diffusers", "dit")], "tp_jax",
     "tp_jax: the whole model, which all commands load; diffusers: DiT, SD3 or autoencoder; dit: "
     "the layout of facebookresearch/DiT; the last two without thinking"),
    ("checkpoint", CountOrZero, None, "train_step of the checkpoint; the newest by default"),
    ("ema", bool, True, "export the EMA parameters; --noema (or --no-ema) the trained ones"),
    ("dtype", Annotated[str, Choice("float32", "bfloat16", "float16")], "float32",
     "of the weights in the formats diffusers and dit"),
    ("with_base", bool, None,
     "include the base in the format tp_jax; by default unless it was frozen in training"),
    ("shard_gigabytes", Positive, 5.0, "largest size of a file in the format diffusers"),
    ("allow_unchecked", bool, False,
     "use a checkpoint whose checksums are missing or damaged, without checking its files"),
    ("push", Word, "", "OWNER/NAME on the Hugging Face Hub to upload the folder to"),
    ("license", Word, "", "license of the weights, for the model card, such as apache-2.0"),
    ("scores", Path, None,
     "scores.json of tp_jax.evaluate, or a folder with several, for the model card; empty is none"),
    ("private", bool, False, "make a new repository on the Hub private"),
)  # fmt: skip
for field in FIELDS:
    define(*field)
define("verify", bool, False, "only compare the files of --workdir with their SHA-256")


def main() -> None:
    from tp_jax.publish.export import Export, export
    from tp_jax.workdir.verify import verify

    values, workdir = flags.FLAGS.flag_values_dict(), required_path("workdir")
    if values["verify"]:
        verify(workdir)
        return
    fields = {name: values[name] for name, *_ in FIELDS}
    export(Export(workdir=workdir, out=output_folder("out"), **fields))


def required_flags() -> tuple[str, ...]:
    """Return the flags that must be given."""
    return ("workdir",) if flags.FLAGS["verify"].value else ("workdir", "out")


if __name__ == "__main__":
    start.run(main, __doc__, required=required_flags, processes=False)
