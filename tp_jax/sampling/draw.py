"""Sample from the model of a workdir into an npz file or a folder of PNGs."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.files.atomic import write_json, write_text
from tp_jax.files.folders import make_folder
from tp_jax.files.outputs import is_output_file
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.parallel.processes import broadcast_from_first
from tp_jax.pictures.galleries import make_captioned_grid, make_class_grid
from tp_jax.pictures.grids import is_whole_png, make_grid, save_png, to_uint8
from tp_jax.pictures.reading import (
    BESIDE,
    CAPTIONS,
    COMPARISON,
    DESCRIPTION,
    FILES,
    GRID,
    ROUTING,
    THINKING,
    read_rgb,
)
from tp_jax.sampling import parts as parts_lib
from tp_jax.sampling.description import claim, describe
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.plan import SamplePlan, plan_samples
from tp_jax.sampling.request import Request, matmul_precision, open_generator
from tp_jax.sampling.thinking_pictures import check_thinks, picture_thinking
from tp_jax.workdir.changes import read_class_names


@dataclasses.dataclass(frozen=True)
class Drawing(Request):
    """The flags of `tp_jax.sample`.

    Attributes:
      num: number of samples; None is one per prompt, or 64 samples of classes.
      labels: classes to cycle through; all classes if empty.
      uniform: choose classes at random, uniformly, instead of cycling through them.
      prompts: prompts to cycle through, for models that are conditioned on text.
      show_thinking: also write `COMPARISON`, `ROUTING` and `THINKING` about the first samples.
    """

    labels: tuple[int, ...] = ()
    uniform: bool = False
    prompts: tuple[str, ...] = ()
    show_thinking: bool = False


def draw_samples(drawing: Drawing) -> None:
    """Generate samples and write them to `drawing.out`.

    If `out` ends in .npz, the file has `arr_0`, images [N, H, W, C] uint8, and `arr_1`, labels or
    prompts [N]. It is written in parts. Otherwise `out` is a folder with one PNG per sample,
    grid.png with the first samples and, for prompts, captions.jsonl. With `show_thinking` it also
    has comparison.png, routing.png and thinking.json (`thinking_pictures`). The same command
    resumes after a kill, with the same bits.

    Raises:
      UserError: the model can't be loaded, or doesn't support something that was requested, or
        `out` has images of another request or other files; nothing is written then. Or a sample
        isn't finite; the samples before it are kept.
    """
    as_file = is_output_file("--out", drawing.out, ".npz")
    if as_file and drawing.show_thinking:
        raise UserError(f"--show_thinking needs a folder, but --out={drawing.out} is a file")
    if drawing.show_thinking and not drawing.thinking:
        raise UserError(
            "--show_thinking compares with the base, which --nothinking samples alone: give"
            " only one of them"
        )
    loaded, generator = open_generator(drawing)
    if drawing.show_thinking:
        check_thinks(loaded)
    plan = plan_samples(
        loaded,
        drawing.num,
        labels=drawing.labels,
        prompts=drawing.prompts,
        negative_prompt=drawing.negative_prompt,
        label_seed=drawing.seed if drawing.uniform else None,
    )
    if not loaded.codec and loaded.built.model.channels not in (1, 3):
        channels = loaded.built.model.channels
        say(f"there is no autoencoder: writing raw latents of {channels} channels")
    description = describe(drawing, loaded, plan.encoder) | {
        "num": len(plan.rows),
        "labels": list(drawing.labels),
        "prompts": list(drawing.prompts),
    }
    with matmul_precision(drawing.matmul_precision):
        write = _write_npz if as_file else _write_pngs
        written = write(drawing, loaded, generator, plan, description)
    say(f"{len(plan.rows)} samples of checkpoint {loaded.train_step}: {written}")


def _write_npz(
    drawing: Drawing,
    loaded: Loaded,
    generator: Generator,
    plan: SamplePlan,
    description: dict[str, Any],
) -> epath.Path:
    # Make the folder now: failing after hours of sampling would lose the samples.
    make_folder(drawing.out.parent, f"--out={drawing.out}")
    parts = parts_lib.open_parts(drawing.out, description, drawing.overwrite)
    if parts.complete:
        return drawing.out
    done = parts.num_written
    with parts, progress_bar(len(plan.rows), "sampling") as bar:
        bar.update(done)
        batches = generator.batches(loaded.params, plan.conditions, drawing.seed, done, plan.rows)
        for batch in batches:
            parts.add(to_uint8(batch, done))
            done += len(batch)
            bar.update(len(batch))
    parts.join(plan.values)
    return drawing.out


# Samples in grid.png.
GRID_SAMPLES = 256
# Smallest height in pixels of the images of a grid without captions, if a multiple allows it.
GRID_SIDE = 96


def _write_pngs(
    drawing: Drawing,
    loaded: Loaded,
    generator: Generator,
    plan: SamplePlan,
    description: dict[str, Any],
) -> epath.Path:
    num, out, is_first = len(plan.rows), drawing.out, jax.process_index() == 0
    digits = max(len(str(num - 1)), 5)
    files = [f"{i:0{digits}d}_{name}.png" for i, name in enumerate(plan.names)]
    path = out / DESCRIPTION
    claim(out, path, description | {FILES: files}, overwrite=drawing.overwrite, also=BESIDE)
    missing = {i for i, file in enumerate(files) if is_first and not is_whole_png(out / file)}
    # Resume at the beginning of a batch, because the same batches give the same bits.
    first = min(missing, default=num)
    done = broadcast_from_first(first - first % generator.batch_size_of(num) if missing else num)
    with progress_bar(num, "sampling") as bar:
        bar.update(done)
        batches = generator.batches(loaded.params, plan.conditions, drawing.seed, done, plan.rows)
        for batch in batches:
            images = to_uint8(batch, done)
            for i, image in enumerate(images, done):
                if is_first and i in missing:
                    save_png(out / files[i], image)
            done += len(images)
            bar.update(len(images))
    if is_first:
        shown = [read_rgb(out / file) for file in files[:GRID_SAMPLES]]
        save_png(out / GRID, _grid(np.stack(shown), plan, loaded))
        if drawing.prompts:
            lines = [
                json.dumps({"file": file, "caption": str(prompt)})
                for file, prompt in zip(files, plan.values, strict=True)
            ]
            write_text(out / CAPTIONS, "\n".join(lines) + "\n")
    if drawing.show_thinking:
        _show_thinking(drawing, loaded, generator, plan)
    return out / GRID


def _show_thinking(
    drawing: Drawing, loaded: Loaded, generator: Generator, plan: SamplePlan
) -> None:
    """Write the pictures of thinking. All processes sample; the first one writes."""
    say("sampling the first ones again, without thinking and with fewer latent steps")
    pictures = picture_thinking(
        loaded, generator, plan, drawing.seed, unchecked=drawing.allow_unchecked
    )
    if jax.process_index() == 0:
        save_png(drawing.out / COMPARISON, pictures.comparison)
        save_png(drawing.out / ROUTING, pictures.routing)
        write_json(drawing.out / THINKING, pictures.summary)
        say(f"what thinking does: {drawing.out / COMPARISON} and {drawing.out / ROUTING}")


def _grid(images: np.ndarray, plan: SamplePlan, loaded: Loaded) -> np.ndarray:
    """Lay the first samples out in a grid, with their labels or prompts."""
    values = plan.values[: len(images)]
    latents = not loaded.codec and loaded.built.model.channels not in (1, 3)
    if latents or loaded.built.model.unconditional:
        return make_grid(images, min_side=GRID_SIDE)
    if plan.encoder is None:
        return make_class_grid(images, values.tolist(), read_class_names(loaded.workdir))
    return make_captioned_grid(images, values.tolist())
