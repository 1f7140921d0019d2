"""Write `before_rooms.tar.xz`: files as revision bbe81de wrote them, with its module layout.

Run it in a checkout of that revision, because it uses the modules and config keys of that time:

    JAX_PLATFORMS=cpu PYTHONPATH=.:tests python tests/golden/make_before_rooms.py OUT.tar.xz
"""

import contextlib
import json
import pathlib
import shutil
import sys
import tarfile
import tempfile

import numpy as np
from absl import flags
from conftest import tiny_config
from etils import epath
from imagenet import make_autoencoder, photo
from navigation import lake_config
from test_prompts import tiny_shapes
from tp_jax.drawing import Drawing, draw_samples
from tp_jax.generation import Generator
from tp_jax.preparation import prepare

from tp_jax import benchmarks
from tp_jax.train.loop import train


def stopped_after(batches: int):
    """A context manager in which sampling stops after this many batches."""
    original = Generator.batches

    def some(self, *args, **kwargs):
        for number, batch in enumerate(original(self, *args, **kwargs)):
            if number == batches:
                raise InterruptedError
            yield batch

    @contextlib.contextmanager
    def block():
        Generator.batches = some
        with contextlib.suppress(InterruptedError):
            yield
        Generator.batches = original

    return block()


def shrink(config) -> None:
    config.model.update(depth=2, width=8)
    if config.model.thinking.layers:
        config.model.thinking.update(layers=(1,), gate_width=4)


def main(out: str) -> None:
    place = pathlib.Path(tempfile.mkdtemp()) / "before_rooms"
    place.mkdir()
    # A workdir of a class-conditional model, stopped half-way; its config has the old keys.
    config = tiny_config(steps=3, samples=0)
    config.checkpoint.every_steps = 3
    config.evaluation.num = 12
    shrink(config)
    train(config, epath.Path(place / "digits"))
    drawing = Drawing(epath.Path(place / "digits"), epath.Path("whole.npz"), num=12, batch_size=4)
    draw_samples(drawing)
    shutil.move("whole.npz", place / "whole.npz")
    # The same samples, interrupted. A part is written once it is old or large enough.
    from tp_jax import parts

    parts.ROWS = 4
    with stopped_after(2):
        draw_samples(Drawing(drawing.workdir, epath.Path(place / "out.npz"), num=12, batch_size=4))
    # A workdir of FrozenLake, and one of Shapes for which half of the images are sampled.
    config = lake_config(steps=2, samples=0)
    shrink(config)
    train(config, epath.Path(place / "lake"))
    config = tiny_shapes()
    config.train.samples = 0
    shrink(config)
    train(config, epath.Path(place / "shapes"))
    request = dict(suite="shapes", num=6, batch_size=4, sampler_changes={"steps": 1})
    with stopped_after(1):
        benchmarks.make(
            benchmarks.Make(epath.Path(place / "shapes"), epath.Path(place / "images"), **request)
        )
    # Prepared latents.
    make_autoencoder(epath.Path(place / "autoencoder"))
    for label in range(2):
        (place / "photos" / f"class{label}").mkdir(parents=True)
        for i in range(2):
            (place / "photos" / f"class{label}" / f"{i}.jpg").write_bytes(photo(2 * label + i))
    config = tiny_config()
    config.model.update(image_size=8, channels=4, num_classes=2)
    config.autoencoder.path = str(place / "autoencoder")
    config.prepare.update(source="folder", dir=str(place / "photos"), split="")
    prepare(config, epath.Path(place / "latents"))
    shutil.rmtree(place / "photos")
    # Scores of two seeds, as `--collect` reads them.
    part = {"all": {"plays": 4, "goal": 0.25, "hole": 0.5}}
    scores = {"suite": "navigation", "model": part, "random_walker": part, "oracle": part}
    for seed in ("0", "1"):
        folder = place / "scores" / "recursive" / seed
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps(scores))
    # Delete what the tests don't read, to keep the archive small.
    for path in place.rglob("events.out.*"):
        path.unlink()
    for name in ("lake", "shapes"):
        for path in (place / name).glob("checkpoints/*/opt_state"):
            shutil.rmtree(path)
        shutil.rmtree(place / name / "checksums")
    with tarfile.open(out, "w:xz") as archive:
        archive.add(place, "before_rooms")
    print({p.name: sum(f.stat().st_size for f in p.rglob("*")) for p in place.iterdir()})
    assert np.load(place / "whole.npz")["arr_0"].shape[0] == 12


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    main(sys.argv[1])
