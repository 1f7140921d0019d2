"""Score the mean brightness of the generated images of each class."""

import numpy as np
from absl import flags
from etils import epath

from tp_jax.cli.flags import required
from tp_jax.cli.sampling_flags import define_sampling_flags
from tp_jax.evals.command import SuiteCommand
from tp_jax.evals.suite import Suite
from tp_jax.files.atomic import write_json
from tp_jax.pictures.grids import to_uint8
from tp_jax.sampling.request import Request, make_generator, open_generator, request_fields

flags.disclaim_key_flags()


class BrightnessSuite(Suite):
    name = "brightness"

    def run(self, values):
        out = epath.Path(required("out"))
        request = Request(out=out, **request_fields(values))
        loaded, generator = open_generator(request)
        scores = self.judge(loaded, generator, values["num"] or 2, request.seed)
        write_json(out, {k: v / 2 for k, v in scores.items()} if values["halved"] else scores)

    def in_training(self, model):
        generator = make_generator(model, batch_size=model.config.evaluation.batch_size)
        return lambda loaded, out: self.judge(loaded, generator, 2, model.config.seed)

    def judge(self, loaded, generator, num, seed):
        classes = loaded.built.model.classes
        labels = np.repeat(np.arange(classes, dtype=np.int32), num)
        batches = generator.batches(loaded.params, {"label": labels}, seed)
        images = to_uint8(np.concatenate(list(batches)))
        return {f"class_{i}": float(images[labels == i].mean()) for i in range(classes)}


def define_flags(values):
    define_sampling_flags(values, "images per class, 2 by default")
    flags.DEFINE_string("out", None, "FILE.json for the scores", flag_values=values)
    flags.DEFINE_boolean("halved", False, "divide all by two", flag_values=values)


BRIGHTNESS = SuiteCommand(
    summary="mean grey value of the images of each class",
    usage="  --workdir=W --out=FILE.json    samples images and scores them",
    define_flags=define_flags,
    required_flags=lambda values: ("workdir", "out"),
    load=BrightnessSuite,
)
