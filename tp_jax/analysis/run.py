"""Analyse the model of a workdir: sample it, look at its routing, and write what was found."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

import tp_jax
from tp_jax.analysis.blocks import LeftOut, as_json, describe_blocks
from tp_jax.analysis.collect import Collected, collect
from tp_jax.analysis.interventions import Outcome, intervene
from tp_jax.analysis.report import write_report
from tp_jax.analysis.samples import Samples, choose_samples
from tp_jax.evals.task import Judgement
from tp_jax.files.atomic import write_text
from tp_jax.files.outputs import check_writable
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import run_on_first
from tp_jax.pictures.grids import picture_differences, save_png
from tp_jax.pictures.maps import routing_maps, rows_of_images, stacked
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.request import Request, matmul_precision, open_generator
from tp_jax.thinking.layer import ThinkingOptions

DOCUMENT, FOLDER = "analysis.json", "analysis"
DEFAULT_NUM = 1_000
# Samples in pictures, and worst samples that are shown.
PICTURED, WORST = 8, 6


@dataclasses.dataclass(frozen=True)
class Analysis(Request):
    """The flags of `tp_jax.analyze`.

    Attributes:
      num: number of samples; None is `DEFAULT_NUM`.
      labels: classes to sample in turn; all classes if empty.
      prompts: prompts to sample in turn; those of the model's suite if empty.
      only_json: write no pictures and no report.
    """

    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    only_json: bool = False


def analyze(request: Analysis) -> dict[str, Any]:
    """Analyse a model, and write `analysis.json`, pictures and `report.html` to `request.out`.

    Returns:
      The content of `analysis.json`.

    Raises:
      UserError: the model can't be loaded or has no thinking layers, or doesn't support something
        that was requested, or the folder can't be written to.
    """
    loaded, generator = open_generator(request)
    thinking = loaded.built.model.thinking
    if not thinking.layers:
        raise UserError(
            f"--workdir={request.workdir} has a model without thinking layers, so it has no "
            f"routing: name a workdir with config.model.thinking.layers"
        )
    num = DEFAULT_NUM if request.num is None else request.num
    samples = choose_samples(loaded, num, request.seed, request.labels, request.prompts)
    run_on_first(lambda: check_writable("--out", request.out, folder=True))
    left_out, steps = LeftOut(), loaded.config.train.steps
    if loaded.train_step < steps:
        why = f"the checkpoint is of train step {loaded.train_step} of {steps}"
        left_out.add("the end of training", why)
    with matmul_precision(request.matmul_precision):
        collected = collect(generator, loaded.params, samples, request.seed)
        say(f"{num} samples collected; now changing the model")
        counts = sum(totals.by_step.sum((0, 1)) for totals in collected.blocks.values())
        use = counts / np.maximum(np.sum(counts), 1)
        outcomes, unchanged = intervene(
            loaded, generator, samples, collected.images, use, request.seed, left_out
        )
    run = _describe_run(request, loaded, generator, samples)
    found = _Found(request, samples, collected, outcomes, unchanged, run)
    sampled = ThinkingOptions(halting_epsilon=generator.halting_epsilon).halting_of(thinking)
    document = {
        "run": run,
        "timesteps": as_json(collected.timesteps),
        "blocks": describe_blocks(
            collected, samples, loaded.params, sampled, run["grid"], left_out, request.seed
        ),
        **found.describe(left_out),
        "left_out": left_out.as_json(),
    }
    run_on_first(lambda: found.write(document))
    return document


def _describe_run(
    request: Analysis, loaded: Loaded, generator: Generator, samples: Samples
) -> dict[str, Any]:
    model, groups = loaded.built.model, samples.groups
    return {
        "workdir": str(request.workdir),
        "train_step": loaded.train_step,
        "num": samples.num,
        "seed": request.seed,
        "sampler": generator.sampler.sampler,
        "sampler_steps": generator.sampler.steps,
        "guidance_scale": generator.sampler.guidance_scale,
        "latent_steps": generator.latent_steps or model.thinking.latent_steps,
        "trained_latent_steps": model.trained_latent_steps_text,
        "halting": model.thinking.halting,
        "halting_epsilon": generator.halting_epsilon,
        "model": loaded.config.model.kind,
        "source": loaded.config.data.source,
        "gate": model.thinking.gate,
        "groups": list(groups.names) if groups else [],
        "group_kind": groups.kind if groups else None,
        "grid": list(generator.grid),
        "experts": model.thinking.experts,
        "version": tp_jax.__version__,
    }


@dataclasses.dataclass(frozen=True)
class _Found:
    """What was found, for its parts of the document and its pictures."""

    request: Analysis
    samples: Samples
    collected: Collected
    outcomes: list[Outcome]
    unchanged: Judgement | None
    run: dict[str, Any]

    @property
    def everything(self) -> list[Outcome]:
        """The outcomes, after the unchanged model as the first."""
        what = "the model as it was trained"
        num = len(self.outcomes[0].images) if self.outcomes else len(self.collected.images)
        images = self.collected.images[:num]
        return [Outcome("unchanged", what, images, 0.0, self.unchanged), *self.outcomes]

    @property
    def worst(self) -> list[int]:
        """The samples with the lowest scores, of those that aren't right."""
        if self.unchanged is None:
            return []
        order = np.argsort(self.unchanged.scores, kind="stable")[:WORST]
        return [i for i in order.tolist() if self.unchanged.scores[i] < 1]

    def describe(self, left_out: LeftOut) -> dict[str, Any]:
        """Return the parts "interventions", "samples" and "worst"."""
        task, pictures = self.samples.task, not self.request.only_json
        if task is None:
            left_out.add("scores and worst samples", self.samples.left_out["scores"])
        interventions = []
        for number, outcome in enumerate(self.everything):
            judged = task is not None and outcome.judgement is not None
            if task is not None and not judged:
                left_out.add(f"{task.score_name}: {outcome.name}", "the suite can't judge it")
            score = float(outcome.judgement.scores.mean()) if outcome.judgement else None
            interventions.append(
                {
                    "name": outcome.name,
                    "what": outcome.what,
                    "difference": outcome.difference,
                    "score": score,
                    "score_name": task.score_name if task is not None and judged else None,
                    "image": f"intervention_{number}.png" if pictures else None,
                }
            )
        blocks = [str(block) for block in self.collected.blocks]
        if not pictures:
            left_out.add("pictures and report", "--json leaves them out")
        return {
            "interventions": interventions,
            "samples": {
                "image": "samples.png" if pictures else None,
                "maps": {block: f"maps_{block}.png" for block in blocks} if pictures else {},
            },
            "worst": [
                {
                    "image": f"worst_{number}.png" if pictures else None,
                    "what": self.unchanged.texts[i],
                    "score": float(self.unchanged.scores[i]),
                }
                for number, i in enumerate(self.worst)
                if self.unchanged is not None
            ],
        }

    def write(self, document: dict[str, Any]) -> None:
        """Write all files."""
        out = self.request.out
        if not self.request.only_json:
            self._write_pictures(out)
        write_text(out / DOCUMENT, json.dumps(document, allow_nan=False) + "\n")
        if self.request.only_json:
            print(out / DOCUMENT)
            return
        write_report(document, out)
        say(f"wrote report.html, {DOCUMENT} and pictures to {out}")

    def _write_pictures(self, out: epath.Path) -> None:
        images = self.collected.images
        save_png(out / "samples.png", rows_of_images([images[:PICTURED]]))
        for block in self.collected.blocks:
            save_png(
                out / f"maps_{block}.png", self._maps(block, range(min(PICTURED, len(images))))
            )
        for number, outcome in enumerate(self.everything):
            changed = outcome.images[:PICTURED]
            same = images[: len(changed)]
            rows = [same, changed, picture_differences(changed, same)] if number else [same]
            picture = rows_of_images(rows)
            save_png(out / f"intervention_{number}.png", picture)
        for number, i in enumerate(self.worst):
            judged = self.unchanged.pictures[i : i + 1] if self.unchanged else ()
            maps = [self._maps(block, [i]) for block in self.collected.blocks]
            save_png(out / f"worst_{number}.png", stacked([*judged, *maps]))

    def _maps(self, block: int, chosen: Any) -> np.ndarray:
        """Draw the routing of some of the first samples in one block."""
        chosen = list(chosen)
        return routing_maps(
            self.collected.images[chosen],
            self.collected.blocks[block].shown[:, :, chosen],
            self.collected.timesteps,
            tuple(self.run["grid"]),
            self.run["experts"],
        )
