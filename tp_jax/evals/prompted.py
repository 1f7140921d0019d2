"""What suites of prompts share: drawing their images from a workdir as their scorers read them."""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath

from tp_jax.cli.flags import required
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.suite import Suite, path_of
from tp_jax.files.atomic import write_json
from tp_jax.files.folders import can_resume, make_folder
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.parallel.processes import broadcast_from_first, run_on_first
from tp_jax.pictures.grids import to_uint8
from tp_jax.pictures.reading import to_rgb
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.prompts import EncodedPrompts, encode_prompts, load_text_encoder
from tp_jax.sampling.request import (
    Request,
    check_same_drawing,
    describe,
    matmul_precision,
    open_generator,
    request_fields,
)


@dataclasses.dataclass(frozen=True)
class PromptedRequest(Request):
    """Images to draw of a suite's prompts.

    Attributes:
      num: the first so many prompts; None is all.
      suite: name of the suite.
      prompts: the user's copy of the suite's prompts; None where the package has them.
      samples: images of each prompt; None is as the suite has them.
    """

    suite: str = ""
    prompts: epath.Path | None = None
    samples: int | None = None


class PromptedSuite(Suite):
    """A suite whose images are drawn from prompts.

    Attributes:
      samples: images of each prompt, where not asked for otherwise.
      joined: whether a prompt's samples make one picture.
      square: whether its scorer takes square images alone.
    """

    samples: ClassVar[int]
    joined: ClassVar[bool] = False
    square: ClassVar[bool] = False

    @abc.abstractmethod
    def read_prompts(self, path: epath.Path | None) -> list[Prompt]:
        """All prompts, in order.

        Args:
          path: the user's copy, where the suite isn't part of the package.

        Raises:
          UserError: they aren't there, or aren't this suite's.
        """

    @abc.abstractmethod
    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """Where the scorer looks for the picture that holds a sample, counted from 0."""

    @abc.abstractmethod
    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """Writes a picture as the scorer reads it.

        Args:
          sample: the number of the first image.
          images: uint8 [n, H, W, 3]; all samples of the prompt where they are `joined`, else one.
        """

    def request(self, values: Mapping[str, Any], out: epath.Path | None = None) -> PromptedRequest:
        """What the flags ask for; images go to `out`, or to --out."""
        return PromptedRequest(
            out=out or epath.Path(required("out")),
            suite=self.name,
            prompts=path_of(values, "prompts") if "prompts" in values else None,
            samples=values["samples_per_prompt"],
            **request_fields(values),
        )

    def chosen_prompts(self, path: epath.Path | None, num: int | None) -> list[Prompt]:
        """The first `num` prompts, or all.

        Raises:
          UserError: they aren't there, or not so many.
        """
        found = self.read_prompts(path)
        if num is not None and not 1 <= num <= len(found):
            raise UserError(f"--num={num}: {self.name} has {len(found)} prompts here")
        return found[:num]

    def draw(self, task: PromptedRequest) -> list[Prompt]:
        """Draws images as the scorer reads them, or goes on where that was killed.

        Returns:
          The prompts.

        Raises:
          UserError: anything that was asked for can't be had, or the folder is of another drawing.
        """
        samples = self.samples if task.samples is None else task.samples
        if samples < 1 or (self.joined and samples != self.samples):
            wanted = f"{self.samples}" if self.joined else "1 or more"
            raise UserError(f"--samples_per_prompt={samples}: {self.name} wants {wanted}")
        prompts = self.chosen_prompts(task.prompts, task.num)
        loaded, generator = open_generator(task)
        if self.square and generator.size and len(set(generator.size)) > 1:
            raise UserError(f"--height, --width: the scorer of {self.name} wants square images")
        encoder = load_text_encoder(loaded)
        texts = [prompt.text for prompt in prompts]
        drawing = describe(task, loaded, encoder.space.identity) | {
            "samples": samples,
            "images": samples * len(prompts),
            "prompts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        }
        open_folder(task.out, drawing)
        encoded = encode_prompts(loaded, texts, task.negative_prompt, encoder)
        with matmul_precision(task.matmul_precision):
            self.draw_encoded(loaded, generator, prompts, encoded, samples, task.seed, task.out)
        count = samples * len(prompts)
        say(f"{count} images of {len(prompts)} prompts, checkpoint {loaded.train_step}: {task.out}")
        return prompts

    def draw_encoded(
        self,
        loaded: Loaded,
        generator: Generator,
        prompts: Sequence[Prompt],
        encoded: EncodedPrompts,
        samples: int,
        seed: int,
        out: epath.Path,
    ) -> None:
        """Draws the images that aren't in `out` yet; the first process writes them."""
        first = broadcast_from_first(self._drawn(out, prompts, samples))
        rows = np.repeat(np.arange(len(prompts)), samples)
        waiting: list[np.ndarray] = []
        at = first
        with progress_bar(len(rows), self.name) as bar:
            bar.update(first)
            conditions = encoded.conditions
            for batch in generator.batches(loaded.params, conditions, seed, first, rows):
                for image in to_rgb(to_uint8(batch)):
                    waiting.append(image)
                    at += 1
                    if len(waiting) < (samples if self.joined else 1):
                        continue
                    if jax.process_index() == 0:
                        sample = (at - len(waiting)) % samples
                        self.write(out, prompts[rows[at - 1]], sample, np.stack(waiting))
                    waiting = []
                bar.update(len(batch))

    def _drawn(self, out: epath.Path, prompts: Sequence[Prompt], samples: int) -> int:
        """How many samples are there, without a gap, from the first on."""
        index = 0
        for prompt in prompts:
            for sample in range(samples):
                if not self.image_path(out, prompt, sample).exists():
                    return index - (sample if self.joined else 0)
                index += 1
        return index


def description_path(out: epath.Path) -> epath.Path:
    """The file that says what decided the images of a folder."""
    # Beside the folder, because scorers expect images alone inside.
    return out.with_name(f"{out.name}.drawing.json")


def open_folder(out: epath.Path, description: dict[str, Any]) -> None:
    """Makes the folder, and writes what decides the images, or compares it with what did.

    Raises:
      UserError: the folder is foreign, or has images of another description.
    """

    def open_it() -> None:
        path = description_path(out)
        if can_resume(out, path, f"--out={out}", "this suite") and any(out.iterdir()):
            check_same_drawing(path, description, f"{out} holds images", f"delete {out}")
        make_folder(out, f"--out={out}")
        write_json(path, description)

    run_on_first(open_it)
