"""Sample from the model of a workdir into an npz file or a folder of PNGs."""

import dataclasses
import json

import jax
import numpy as np
from etils import epath

from tp_jax.files.folders import make_folder
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.pictures.galleries import make_captioned_grid, make_class_grid
from tp_jax.pictures.grids import make_grid, save_png, to_uint8
from tp_jax.sampling import parts as parts_lib
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.plan import SamplePlan, plan_samples
from tp_jax.sampling.request import (
    Request,
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
    plan = plan_samples(
        loaded,
        drawing.num,
        labels=drawing.labels,
        prompts=drawing.prompts,
        negative_prompt=drawing.negative_prompt,
        label_seed=drawing.seed if drawing.uniform else None,
    )
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
    drawing: Drawing, loaded: Loaded, generator: Generator, plan: SamplePlan
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
    drawing: Drawing, loaded: Loaded, generator: Generator, plan: SamplePlan
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
        save_png(drawing.out / "grid.png", _grid(np.stack(shown), plan, loaded))
        if drawing.prompts:
            lines = [
                json.dumps({"file": file, "caption": str(prompt)})
                for file, prompt in zip(files, plan.values, strict=True)
            ]
            (drawing.out / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return drawing.out / "grid.png"


def _grid(images: np.ndarray, plan: SamplePlan, loaded: Loaded) -> np.ndarray:
    """Lay the first samples out in a grid, with their labels or prompts."""
    values = plan.values[: len(images)]
    if images.shape[-1] not in (1, 3) or loaded.built.model.unconditional:
        return make_grid(images, min_side=64)
    if plan.encoder is None:
        return make_class_grid(images, values.tolist())
    return make_captioned_grid(images, values.tolist())
