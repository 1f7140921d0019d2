"""The ADM suite: FID, sFID, Inception Score, precision and recall of images or of a workdir."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

import tp_jax
from tp_jax.cli.flags import output_file, output_folder, required_path
from tp_jax.evals.adm.dinov2 import (
    Dinov2Scores,
    check_dinov2,
    load_dinov2,
    score_dinov2,
)
from tp_jax.evals.adm.features import check_protocol, load_extractor
from tp_jax.evals.adm.generator_scorer import load_scorer
from tp_jax.evals.adm.reference import (
    check_reference,
    complete_reference,
    compute_statistics,
    read_reference,
    save_statistics,
)
from tp_jax.evals.adm.scores import Scores, score_statistics
from tp_jax.evals.adm.sweep import Sweep, run_sweep
from tp_jax.evals.suite import EvaluateInTraining, Suite, path_of
from tp_jax.files.atomic import write_json
from tp_jax.files.folders import make_folder
from tp_jax.messages.errors import UserError
from tp_jax.pictures.reading import open_images
from tp_jax.sampling.loaded import Loaded, ModelOnMesh
from tp_jax.sampling.request import make_generator, picture_size

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")


class AdmSuite(Suite):
    """Scores images against a reference, and sweeps guidance scales and latent steps."""

    name = "adm"

    def run(self, values: Mapping[str, Any]) -> None:
        """Score images, or sweep a workdir."""
        if values["sweep"]:
            if values["dinov2"]:
                raise UserError("--dinov2 and --sweep exclude each other: give only one")
            self._sweep(values)
            return
        score_images(
            ScoreRequest(
                samples=required_path("samples"),
                inception=required_path("inception"),
                reference=path_of(values, "reference"),
                dinov2=path_of(values, "dinov2"),
                out=output_file("out", ".json"),
                save_statistics=output_file("save_statistics", ".npz"),
                **{n: values[n] for n in ("protocol", "batch_size", "num")},
            )
        )

    def _sweep(self, values: Mapping[str, Any]) -> None:
        names = (
            "seed", "batch_size", "protocol", "checkpoint", "base", "autoencoder", "dtype",
            "matmul_precision", "allow_unchecked",
        )  # fmt: skip
        run_sweep(
            Sweep(
                out=output_folder("out"),
                **{n: required_path(n) for n in ("workdir", "reference", "inception")},
                guidance_scales=values["guidance_scales"],
                latent_steps=values["latent_steps"],
                sampler_changes={
                    name: values[flag]
                    for name, flag in (("steps", "sampler_steps"), ("guidance_channels",) * 2)
                    if values[flag] is not None
                },
                num=50_000 if values["num"] is None else values["num"],
                **{name: values[name] for name in names},
            )
        )

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Return a function that samples images, cycling through the classes, and scores them."""
        settings, transformer = self.settings(model), model.built.model
        if transformer.condition_kind != "label":
            raise UserError(
                f"config.evaluation.suite={self.name!r} needs a class-conditional model, but this "
                f"{model.config.model.kind} model takes text or a frame: choose another suite"
            )
        if settings.num < 2:
            raise UserError(f"config.evaluation.adm.num={settings.num}: must be 2 or more")
        for field in ("reference", "inception"):
            if not settings[field]:
                raise UserError(
                    f"config.evaluation.adm.{field} is empty, but config.evaluation.suite="
                    f"{self.name!r} needs it"
                )
        batch_size, size = (
            model.config.evaluation.batch_size,
            picture_size(model),
        )
        scorer = load_scorer(
            settings.reference, settings.inception, settings.protocol, batch_size, size
        )
        generator = make_generator(model, batch_size=batch_size)

        def evaluate(loaded: Loaded, out: epath.Path) -> Mapping[str, Any]:
            scores = scorer.score(
                generator, loaded.params, settings.num, transformer.classes, model.config.seed
            )
            return dataclasses.asdict(scores)

        return evaluate


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """A request to score images.

    Attributes:
      samples: FILE.npz or a folder of PNGs.
      reference: file or folder to compare with; may be None if `save_statistics` is set.
      inception: folder written by `tp_jax.convert --kind=inception`.
      dinov2: folder with DINOv2, for FD-DINOv2 too.
      protocol: key of `PROTOCOLS`.
      out: FILE.json for the scores.
      save_statistics: FILE.npz to write, which can be a reference later.
      batch_size: images per batch.
      num: number of images, the first ones; None is all.
    """

    samples: epath.Path
    reference: epath.Path | None
    inception: epath.Path
    protocol: str = "adm"
    out: epath.Path | None = None
    save_statistics: epath.Path | None = None
    batch_size: int = 64
    num: int | None = None
    dinov2: epath.Path | None = None


def score_images(request: ScoreRequest) -> Scores:
    """Score a file or folder of images, print a table, and write the requested files.

    Raises:
      UserError: a flag or a file is invalid. Everything that can be is checked before the first
        image is read.
    """
    check_protocol(request.protocol)
    if not (request.reference or request.save_statistics):
        raise UserError(
            "--reference is missing: give one, or --save_statistics=FILE.npz to create one"
        )
    samples = open_images(request.samples)
    count = samples.count if request.num is None else request.num
    if samples.count < 2:
        raise UserError(f"{request.samples} has {samples.count} image: scores need at least 2")
    if not 2 <= count <= samples.count:
        raise UserError(
            f"--num={count}: {request.samples} has {samples.count} images: give 2 to "
            f"{samples.count}"
        )
    reference = read_reference(request.reference) if request.reference else None
    for name, path in (("out", request.out), ("save_statistics", request.save_statistics)):
        _prepare_file(name, path)
    extractor = load_extractor(request.inception, request.protocol, request.batch_size)
    if reference:
        check_reference(reference, extractor, samples.size)
    network = dinov2 = None
    if request.dinov2:
        network = load_dinov2(request.dinov2, request.batch_size)
        if reference:
            check_dinov2(reference, network.identity)

    batches = samples.batches(request.batch_size, count)
    statistics = compute_statistics(batches, count, extractor, "features of samples")
    if network:
        dinov2 = network.statistics(samples, count, "samples")
    if request.save_statistics and jax.process_index() == 0:
        save_statistics(request.save_statistics, statistics, extractor, samples.size, dinov2)
    scores = score_statistics(
        statistics, complete_reference(reference, extractor) if reference else None, extractor
    )
    more = score_dinov2(dinov2, reference, network) if dinov2 and network else None
    if jax.process_index() == 0:
        print(as_table(scores, more))
        if request.out:
            write_json(request.out, as_json(scores, request, more))
    return scores


def _prepare_file(name: str, path: epath.Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--{name}={path} is a folder: name a file")
    make_folder(path.parent, f"--{name}={path}")


def as_table(scores: Scores, dinov2: Dinov2Scores | None = None) -> str:
    """Return a table with one line per score and setting, followed by the notes."""
    fields = dataclasses.asdict(scores) | (dataclasses.asdict(dinov2) if dinov2 else {})
    notes = fields.pop("notes")
    lines = [f"{name:16}{_as_text(value)}" for name, value in fields.items()]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _as_text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)


def as_json(
    scores: Scores, request: ScoreRequest, dinov2: Dinov2Scores | None = None
) -> dict[str, Any]:
    """Return the scores, the path of the images, and the versions of the packages as JSON."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {"tp_jax": tp_jax.__version__, "device": jax.devices()[0].device_kind}
    fields = {"suite": "adm", "samples": str(request.samples), **dataclasses.asdict(scores)}
    fields |= dataclasses.asdict(dinov2) if dinov2 else {}
    return {**fields, "versions": versions}
