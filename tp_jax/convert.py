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


def main() -> None:
    from tp_jax.pretrained.convert import Conversion, convert

    convert(
        Conversion(
            kind=required("kind"),
            source=epath.Path(required("source")),
            out=epath.Path(required("out")),
            heads=flags.FLAGS["heads"].value,
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("kind", "source", "out"), processes=False)
