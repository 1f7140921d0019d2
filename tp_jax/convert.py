"""Convert: python -m tp_jax.convert --kind=dit|sit|sd3|sd-vae|inception --source=FILE --out=DIR."""

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import define, output_folder, required
from tp_jax.files.hub import local
from tp_jax.values.kinds import Number, Path, Positive, Size, Source, Word

define("kind", Word, None, "what the weights belong to: dit, sit, sd3, sd-vae or inception")
define(
    "source",
    Source,
    None,
    "file with torch weights (.pt, .pth, .ckpt or .safetensors), or folder of shards; also "
    "hf://OWNER/NAME[@REVISION][/PATH]",
)
define("out", Path, None, "a new or empty folder")
define(
    "heads",
    Size,
    None,
    "number of attention heads of a DiT or SD3 whose size isn't a published one",
)
define(
    "scale",
    Positive,
    None,
    "scale of an autoencoder's latents, (z - shift)*scale, if no config.json tells it",
)
define("shift", Number, None, "shift of an autoencoder's latents, if no config.json has it")
define("null_class", bool, True, 'whether the last row of a DiT\'s label table is "no class"')


def main() -> None:
    from tp_jax.pretrained.convert import KINDS, Conversion, convert

    kind = KINDS.get(required("kind"))
    folders = [kind.subfolder] if kind and kind.subfolder else []
    convert(
        Conversion(
            kind=required("kind"),
            source=local(required("source"), *folders),
            out=output_folder("out"),
            heads=flags.FLAGS["heads"].value,
            scale=flags.FLAGS["scale"].value,
            shift=flags.FLAGS["shift"].value,
            null_class=bool(flags.FLAGS["null_class"].value),
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("kind", "source", "out"), processes=False)
