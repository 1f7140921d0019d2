"""Sample from the model of a workdir into an npz file or a folder of PNGs."""

import dataclasses
import json
import re
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.files.folders import make_folder
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.pictures.grids import make_grid, save_png, to_uint8
from tp_jax.sampling import parts as parts_lib
from tp_jax.sampling.generator import Generator, choose_labels
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.prompts import encode_prompts
from tp_jax.sampling.request import (
    Request,
    check_no_frame,
    describe,
    matmul_precision,
    open_generator,
)


@dataclasses.dataclass(frozen=True)
class Drawing(Request):
    """The flags of `tp_jax.sample`.

    Attributes:
      num: number of samples; None is one per prompt, or 64 samples of classes.
      labels: classes to cycle through; all classes if empty.
      uniform: choose classes at random, uniformly, instead of cycling through them.
      prompts: prompts to cycle through, for models that are conditioned on text.
    """

    labels: tuple[int, ...] = ()
    uniform: bool = False
    prompts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _SamplePlan:
    """The conditions of the N samples to generate.

    Attributes:
      conditions, rows: arguments of `Generator.batches`.
      values: [N] class labels or prompts, which are written to the npz.
      names: [N] names for the PNG files.
      encoder: identity of the text encoder; None for classes.
    """

    conditions: Any
    rows: np.ndarray
    values: np.ndarray
    names: list[str]
    encoder: str | None = None


def _plan_samples(drawing: Drawing, loaded: Loaded) -> _SamplePlan:
    check_no_frame(loaded, drawing.workdir)
    is_text_model = loaded.built.model.condition_kind == "text"
    if drawing.prompts or is_text_model:
        if drawing.labels or drawing.uniform:
            raise UserError(
                "--labels and --uniform only apply to models of classes: leave them out"
            )
        if not drawing.prompts:
            raise UserError(
                f"--prompts is missing: a {loaded.config.model.kind} model is conditioned on text; "
                f"give a prompt, or a file with one prompt per line"
            )
        prompts = encode_prompts(loaded, drawing.prompts, drawing.negative_prompt)
        num = len(prompts.texts) if drawing.num is None else drawing.num
        if num < 1:
            raise UserError(f"num={num}: must be 1 or more")
        rows = np.arange(num) % len(prompts.texts)
        values = np.array(prompts.texts)[rows]
        names = [_slug(value) for value in values]
        return _SamplePlan(prompts.conditions, rows, values, names, prompts.encoder)
    if drawing.negative_prompt:
        raise UserError("--negative_prompt only applies to models of text: leave it out")
    num = 64 if drawing.num is None else drawing.num
    label_seed = drawing.seed if drawing.uniform else None
    labels = choose_labels(drawing.labels, num, loaded.built.model.classes, label_seed)
    names = [f"class{label}" for label in labels]
    return _SamplePlan({"label": labels}, np.arange(num), labels, names)


def _slug(prompt: str) -> str:
    """Return a prompt in a form that fits into a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def draw_samples(drawing: Drawing) -> None:
    """Generate samples and write them to `drawing.out`.

    If `out` ends in .npz, the file has `arr_0`, images [N, H, W, C] uint8, and `arr_1`, labels or
    prompts [N]. It is written in parts, so that the same command resumes after a kill. Otherwise
    `out` is a folder with one PNG per sample, grid.png with the first samples and, for prompts,
    captions.jsonl.

    Raises:
      UserError: the model can't be loaded, or doesn't support something that was requested;
        nothing is written then.
    """
    as_file = drawing.out.suffix == ".npz"
    if drawing.out.exists() and drawing.out.is_dir() == as_file:
        kind = "folder" if as_file else "file"
        raise UserError(f"--out={drawing.out} is a {kind}: give FILE.npz or a folder")
    loaded, generator = open_generator(drawing)
    plan = _plan_samples(drawing, loaded)
    # Create the folder first: failing after hours of sampling would lose the samples.
    folder = drawing.out.parent if as_file else drawing.out
    make_folder(folder, f"--out={drawing.out}")
    if not loaded.codec and loaded.built.model.channels not in (1, 3):
        channels = loaded.built.model.channels
        say(f"there is no autoencoder: writing raw latents of {channels} channels")
    with matmul_precision(drawing.matmul_precision):
        write = _write_npz if as_file else _write_pngs
        written = write(drawing, loaded, generator, plan)
    say(f"{len(plan.rows)} samples of checkpoint {loaded.train_step}: {written}")


def _write_npz(
    drawing: Drawing, loaded: Loaded, generator: Generator, plan: _SamplePlan
) -> epath.Path:
    description = describe(drawing, loaded, plan.encoder) | {
        "num": len(plan.rows),
        "labels": list(drawing.labels),
        "prompts": list(drawing.prompts),
    }
    parts = parts_lib.open_parts(drawing.out, description)
    with progress_bar(len(plan.rows), "sampling") as bar:
        bar.update(parts.num_written)
        batches = generator.batches(
            loaded.params, plan.conditions, drawing.seed, parts.num_written, plan.rows
        )
        for batch in batches:
            parts.add(to_uint8(batch))
            bar.update(len(batch))
    parts.join(plan.values)
    return drawing.out


# Samples in grid.png.
GRID_SAMPLES = 256


def _write_pngs(
    drawing: Drawing, loaded: Loaded, generator: Generator, plan: _SamplePlan
) -> epath.Path:
    num = len(plan.rows)
    digits, done, shown = max(len(str(num - 1)), 5), 0, []
    files = [f"{i:0{digits}d}_{name}.png" for i, name in enumerate(plan.names)]
    batches = generator.batches(loaded.params, plan.conditions, drawing.seed, rows=plan.rows)
    with progress_bar(num, "sampling") as bar:
        for batch in batches:
            images = to_uint8(batch)
            if jax.process_index() == 0:
                for file, image in zip(files[done:], images, strict=False):
                    save_png(drawing.out / file, image)
            shown.extend(images[: GRID_SAMPLES - len(shown)])
            done += len(images)
            bar.update(len(images))
    if jax.process_index() == 0:
        save_png(drawing.out / "grid.png", make_grid(np.stack(shown)))
        if drawing.prompts:
            lines = [
                json.dumps({"file": file, "caption": str(prompt)})
                for file, prompt in zip(files, plan.values, strict=True)
            ]
            (drawing.out / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return drawing.out / "grid.png"
