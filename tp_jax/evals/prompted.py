"""Benchmarks of prompts: their images from a workdir, and their scores."""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.dpg import questions as dpg
from tp_jax.evals.geneval import prompts as geneval
from tp_jax.evals.prompts import Prompt
from tp_jax.evals.shapes import suite as shapes
from tp_jax.files.atomic import make_folder, write_bytes, write_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.parallel.processes import by_first, first_says
from tp_jax.pictures.grids import to_uint8
from tp_jax.sampling.prompts import encode_prompts, load_text
from tp_jax.sampling.request import (
    Request,
    check_same_drawing,
    describe,
    matmul_precision,
    open_generator,
)

# Suites whose scorer takes square images alone.
SQUARE = ("dpg", "shapes")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How a benchmark's prompts are read, and where its images lie.

    Attributes:
      read: path of the user's copy -> prompts; None where they are the package's own.
      samples: images of each prompt, where not said.
      joined: whether a prompt's four samples make one picture.
    """

    read: Callable[[epath.Path], list[Prompt]] | None
    samples: int
    joined: bool = False

    def path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """Of the picture that holds a sample."""
        if self.joined:
            return dpg.image_path(out, prompt)
        return geneval.image_path(out, prompt, sample)


BENCHMARKS = {
    "geneval": Benchmark(geneval.read_prompts, samples=4),
    "dpg": Benchmark(dpg.read_prompts, samples=4, joined=True),
    "shapes": Benchmark(None, samples=1),
}


@dataclasses.dataclass(frozen=True)
class Make(Request):
    """Images to draw for a benchmark; the flags of `tp_jax.evaluate --make`.

    Attributes:
      num: the first so many prompts; None is all.
      suite: a key of `BENCHMARKS`.
      prompts: the user's copy of the benchmark's prompts; None for Shapes.
      samples: images of each prompt; None is as the benchmark has them.
    """

    suite: str = "shapes"
    prompts: epath.Path | None = None
    samples: int | None = None


def read_prompts(suite: str, path: epath.Path | None, num: int | None = None) -> list[Prompt]:
    """The prompts of a benchmark.

    Raises:
      UserError: they aren't there, or aren't that benchmark's.
    """
    read = BENCHMARKS[suite].read
    if read is None:
        found = shapes.prompts()
    elif path is None:
        raise UserError(f"--prompts is missing: name your copy of the prompts of {suite}")
    else:
        found = read(path)
    if num is not None and not 1 <= num <= len(found):
        raise UserError(f"--num={num}: {suite} has {len(found)} prompts here")
    return found[:num]


def make(task: Make) -> list[Prompt]:
    """Draws a benchmark's images as its scorer reads them, or goes on where that was killed.

    Returns:
      The prompts.

    Raises:
      UserError: anything that was asked for can't be had, or the folder is of another drawing.
    """
    benchmark = BENCHMARKS[task.suite]
    samples = benchmark.samples if task.samples is None else task.samples
    if samples < 1 or (benchmark.joined and samples != benchmark.samples):
        wanted = f"{benchmark.samples}" if benchmark.joined else "1 or more"
        raise UserError(f"--samples_per_prompt={samples}: {task.suite} wants {wanted}")
    prompts = read_prompts(task.suite, task.prompts, task.num)
    loaded, generator = open_generator(task)
    if task.suite in SQUARE and generator.size and len(set(generator.size)) > 1:
        raise UserError(f"--height, --width: the scorer of {task.suite} wants square images")
    encoder = load_text(loaded)
    texts = [prompt.text for prompt in prompts]
    _open_folder(task.out, describe(task, loaded, encoder.space.identity) | {
        "samples": samples,
        "images": samples * len(prompts),
        "prompts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
    })  # fmt: skip
    encoded = encode_prompts(loaded, texts, task.negative_prompt, encoder)

    count = len(prompts) * samples
    first = first_says(_drawn(task.out, benchmark, prompts, samples))
    rows = np.repeat(np.arange(len(prompts)), samples)
    waiting: list[np.ndarray] = []
    with progress_bar(count, task.suite) as bar, matmul_precision(task.matmul_precision):
        bar.update(first)
        at = first
        for batch in generator.batches(loaded.params, encoded.conditions, task.seed, first, rows):
            for image in to_uint8(batch):
                waiting.append(image)
                if len(waiting) == (samples if benchmark.joined else 1):
                    _write(task.out, benchmark, prompts[rows[at]], at % samples, waiting)
                    waiting = []
                at += 1
            bar.update(len(batch))
    say(f"{count} images of {len(prompts)} prompts, checkpoint {loaded.train_step}: {task.out}")
    return prompts


def description_path(out: epath.Path) -> epath.Path:
    """The file that says what decided the images of a folder."""
    # Beside the folder, in which scorers look for images alone.
    return out.with_name(f"{out.name}.drawing.json")


def _open_folder(out: epath.Path, description: dict[str, Any]) -> None:
    """Makes the folder, and writes what decides the images, or compares it with what did.

    Raises:
      UserError: the folder is foreign, or has images of another description.
    """

    def open_it() -> None:
        _check_folder(out, description)
        make_folder(out, f"--out={out}")
        write_json(description_path(out), description)

    by_first(open_it)


def _check_folder(out: epath.Path, description: dict[str, Any]) -> None:
    path = description_path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not path.exists():
        raise UserError(f"--out={out} holds other files: name a new or empty folder")
    check_same_drawing(path, description, f"{out} holds images", f"delete {out}")


def _drawn(out: epath.Path, benchmark: Benchmark, prompts: Sequence[Prompt], samples: int) -> int:
    """How many samples are there, without a gap, from the first on."""
    index = 0
    for prompt in prompts:
        for sample in range(samples):
            if not benchmark.path(out, prompt, sample).exists():
                return index - (sample if benchmark.joined else 0)
            index += 1
    return index


def _write(out, benchmark: Benchmark, prompt: Prompt, sample: int, images) -> None:
    if jax.process_index():
        return
    images = [image.repeat(3, -1) if image.shape[-1] == 1 else image for image in images]
    picture = dpg.grid(np.stack(images)) if benchmark.joined else images[0]
    path = benchmark.path(out, prompt, sample)
    if not benchmark.joined:
        geneval.write_metadata(out, prompt)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    write_bytes(path, buffer.getvalue())
