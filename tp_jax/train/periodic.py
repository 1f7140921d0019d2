"""What training does every so often: when, and what."""

import dataclasses
from typing import Any

import jax
import numpy as np

from tp_jax import data
from tp_jax.evals.adm.scorer import load_scorer, picture_size
from tp_jax.files.atomic import write_json
from tp_jax.messages.progress import say
from tp_jax.parallel.mesh import BATCH_AXES
from tp_jax.pictures.grids import make_grid, save_png, to_uint8
from tp_jax.sampling.generator import Generator, choose_labels


def _picture_conditions(source, encoder, config) -> Any:
    """Labels that go round, or the text of the first records."""
    if not config.train.samples:
        return {}
    if source.gives == "label":
        labels = choose_labels((), config.train.samples, config.model.num_classes)
        return {"label": labels}
    return data.example_conditions(source, encoder, config.train.samples)


class _Pictures:
    """A grid of EMA samples every so often, always from the same noise."""

    def __init__(self, model, built, config, mesh, codec, workdir, writer, conditions):
        shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self._count = config.train.samples
        batch_size = -(-max(self._count, 1) // shards) * shards
        self._generator = Generator(
            model, built.objective, built.sampler, mesh, batch_size, codec=codec
        )
        self._conditions, self._seed, self._workdir = conditions, config.seed, workdir
        self._writer = writer

    def draw(self, train_step: int, params: Any) -> None:
        """Samples, writes `samples/<train_step>.png` and an image to TensorBoard."""
        if not self._count:
            return
        batches = self._generator.batches(params, self._conditions, self._seed)
        grid = make_grid(to_uint8(np.concatenate(list(batches))))
        if jax.process_index() == 0:
            path = self._workdir / "samples" / f"{train_step:08d}.png"
            save_png(path, grid)
            shown = grid if grid.shape[-1] in (1, 3) else grid[..., :3]
            self._writer.write_images(train_step, {"samples": shown[None]})
            say(f"samples of step {train_step}: {path}")


class _Evaluation:
    """Scores of EMA samples every so often, always from the same noise."""

    def __init__(self, model, built, config, mesh, codec, workdir):
        self._config, self._workdir = config, workdir
        fields = config.evaluation
        if not fields.suite:
            return
        size = picture_size(built.model, codec)
        self._scorer = load_scorer(
            fields.reference, fields.inception, fields.protocol, fields.batch_size, size
        )
        self._generator = Generator(
            model, built.objective, built.sampler, mesh, fields.batch_size, codec=codec
        )

    def is_due(self, train_step: int) -> bool:
        """Whether to score now: every so often, and at the end."""
        fields = self._config.evaluation
        last = train_step == self._config.train.steps
        return bool(fields.suite) and (train_step % fields.every_steps == 0 or last)

    def run(self, train_step: int, params: Any, writer) -> None:
        """Scores, into TensorBoard and `evaluations/<train_step>.json`."""
        config = self._config
        num_classes = getattr(config.model, "num_classes", 0)
        scores = self._scorer.score(
            self._generator, params, config.evaluation.num, num_classes, config.seed
        )
        fields = dataclasses.asdict(scores)
        numbers = {f"evaluation/{k}": v for k, v in fields.items() if isinstance(v, float)}
        writer.write_scalars(train_step, numbers)
        if jax.process_index() == 0:
            path = self._workdir / "evaluations" / f"{train_step:08d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, fields)
        values = "  ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        say(f"step {train_step}: {values}")
