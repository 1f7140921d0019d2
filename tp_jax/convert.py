"""Convert: python -m tp_jax.convert --kind=dit|sd3|sd-vae|inception --source=FILE --out=DIR."""

from absl import flags
from etils import epath

from tp_jax.cli import start
from tp_jax.cli.flags import required

flags.DEFINE_string("kind", None, "what the weights belong to: dit, sd3, sd-vae or inception")
flags.DEFINE_string(
    "source",
    None,
    "file with torch weights (.pt, .pth, .ckpt or .safetensors), or folder of shards",
)
flags.DEFINE_string("out", None, "a new or empty folder")
flags.DEFINE_integer(
    "heads", None, "number of attention heads of a DiT or SD3 whose size isn't a published one"
)
flags.DEFINE_float(
    "scale",
    None,
    "scale of an autoencoder's latents, (z - shift)*scale, if no config.json tells it",
)
flags.DEFINE_float("shift", None, "shift of an autoencoder's latents, if no config.json has it")
flags.DEFINE_boolean(
    "null_class", True, 'whether the last row of a DiT\'s label table is "no class"'
)


def main() -> None:
    from tp_jax.pretrained.convert import Conversion, convert

    convert(
        Conversion(
            kind=required("kind"),
            source=epath.Path(required("source")),
            out=epath.Path(required("out")),
            heads=flags.FLAGS["heads"].value,
            scale=flags.FLAGS["scale"].value,
            shift=flags.FLAGS["shift"].value,
            null_class=bool(flags.FLAGS["null_class"].value),
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("kind", "source", "out"), processes=False)
