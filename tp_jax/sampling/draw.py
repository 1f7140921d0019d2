"""Samples of a trained workdir, into a file or a folder."""

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
    """What to draw, and where to; the flags of `tp_jax.sample`.

    Attributes:
      num: images, going round classes or prompts; None is one a prompt, or 64.
      labels: classes to go round; empty is all of them.
      uniform: draw classes uniformly instead of going round.
      prompts: for models that take text.
    """

    labels: tuple[int, ...] = ()
    uniform: bool = False
    prompts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Subjects:
    """What the N samples are of.

    Attributes:
      conditions, rows: for `Generator.batches`.
      values: [N] labels or prompts, for the npz.
      names: of the files, [N].
      encoder: identity of the text encoder, or None.
    """

    conditions: Any
    rows: np.ndarray
    values: np.ndarray
    names: list[str]
    encoder: str | None = None


def _subjects(drawing: Drawing, loaded: Loaded) -> _Subjects:
    check_no_frame(loaded, drawing.workdir)
    takes_text = loaded.built.model.takes == "text"
    if drawing.prompts or takes_text:
        if drawing.labels or drawing.uniform:
            raise UserError("--labels and --uniform are of classes: this draws prompts")
        if not drawing.prompts:
            raise UserError(
                f'--prompts is missing: a {loaded.config.model.kind} model takes text; give "text" '
                f"or a file with a prompt on each line"
            )
        prompts = encode_prompts(loaded, drawing.prompts, drawing.negative_prompt)
        num = len(prompts.texts) if drawing.num is None else drawing.num
        if num < 1:
            raise UserError(f"num={num}: must be 1 or more")
        rows = np.arange(num) % len(prompts.texts)
        values = np.array(prompts.texts)[rows]
        names = [_slug(value) for value in values]
        return _Subjects(prompts.conditions, rows, values, names, prompts.encoder)
    if drawing.negative_prompt:
        raise UserError("--negative_prompt is of models that take text: leave it out")
    num = 64 if drawing.num is None else drawing.num
    label_seed = drawing.seed if drawing.uniform else None
    labels = choose_labels(drawing.labels, num, loaded.built.model.classes, label_seed)
    names = [f"class{label}" for label in labels]
    return _Subjects({"label": labels}, np.arange(num), labels, names)


def _slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def draw_samples(drawing: Drawing) -> None:
    """Draws and writes: an npz of `arr_0` uint8 NHWC and `arr_1` labels or prompts, or PNGs.

    Beside PNGs are a grid of the first and, of prompts, `captions.jsonl`.

    An npz is drawn in parts, so that the same drawing, killed, goes on.

    Raises:
      UserError: anything that was asked for can't be had; nothing is written then.
    """
    as_file = drawing.out.suffix == ".npz"
    if drawing.out.exists() and drawing.out.is_dir() == as_file:
        kind = "folder" if as_file else "file"
        raise UserError(f"--out={drawing.out} is a {kind}: name FILE.npz or a folder")
    loaded, generator = open_generator(drawing)
    subjects = _subjects(drawing, loaded)
    # Before drawing, so that hours of it aren't lost for want of a folder.
    folder = drawing.out.parent if as_file else drawing.out
    make_folder(folder, f"--out={drawing.out}")
    if not loaded.codec and loaded.built.model.channels not in (1, 3):
        say(f"these are raw latents of {loaded.built.model.channels} channels: no autoencoder")
    with matmul_precision(drawing.matmul_precision):
        draw = _draw_npz if as_file else _draw_folder
        where = draw(drawing, loaded, generator, subjects)
    say(f"{len(subjects.rows)} samples of checkpoint {loaded.train_step}: {where}")


def _draw_npz(
    drawing: Drawing, loaded: Loaded, generator: Generator, subjects: _Subjects
) -> epath.Path:
    description = describe(drawing, loaded, subjects.encoder) | {
        "num": len(subjects.rows),
        "labels": list(drawing.labels),
        "prompts": list(drawing.prompts),
    }
    parts = parts_lib.open_parts(drawing.out, description)
    with progress_bar(len(subjects.rows), "sampling") as bar:
        bar.update(parts.rows)
        batches = generator.batches(
            loaded.params, subjects.conditions, drawing.seed, parts.rows, subjects.rows
        )
        for batch in batches:
            parts.add(to_uint8(batch))
            bar.update(len(batch))
    parts.join(subjects.values)
    return drawing.out


# More wouldn't be looked at.
GRID = 256


def _draw_folder(
    drawing: Drawing, loaded: Loaded, generator: Generator, subjects: _Subjects
) -> epath.Path:
    num = len(subjects.rows)
    digits, done, shown = max(len(str(num - 1)), 5), 0, []
    files = [f"{i:0{digits}d}_{name}.png" for i, name in enumerate(subjects.names)]
    batches = generator.batches(
        loaded.params, subjects.conditions, drawing.seed, rows=subjects.rows
    )
    with progress_bar(num, "sampling") as bar:
        for batch in batches:
            images = to_uint8(batch)
            if jax.process_index() == 0:
                for file, image in zip(files[done:], images, strict=False):
                    save_png(drawing.out / file, image)
            shown.extend(images[: GRID - len(shown)])
            done += len(images)
            bar.update(len(images))
    if jax.process_index() == 0:
        save_png(drawing.out / "grid.png", make_grid(np.stack(shown)))
        if drawing.prompts:
            lines = [
                json.dumps({"file": file, "caption": str(prompt)})
                for file, prompt in zip(files, subjects.values, strict=True)
            ]
            (drawing.out / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return drawing.out / "grid.png"
