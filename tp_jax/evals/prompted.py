"""Base class of suites that generate images from text prompts, in the layout of their scorers."""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax.cli.flags import output_folder
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.suite import Suite, path_of
from tp_jax.messages.errors import UserError, WriteError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.parallel.processes import broadcast_from_first, run_on_first
from tp_jax.pictures.grids import is_whole_png, to_uint8
from tp_jax.pictures.reading import FILES, to_rgb
from tp_jax.sampling.description import claim, describe, path_beside
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.prompts import EncodedPrompts, check_prompts, encode_prompts, load_text_encoder
from tp_jax.sampling.request import (
    Request,
    matmul_precision,
    open_generator,
    request_fields,
)
from tp_jax.workdir.record import read_config


@dataclasses.dataclass(frozen=True)
class PromptedRequest(Request):
    """A request to generate images for a suite's prompts.

    Attributes:
      num: number of prompts, the first ones; None is all.
      suite: name of the suite.
      prompts: the user's copy of the suite's prompts; None if the package contains them.
      samples_per_prompt: number of images per prompt; None is the suite's default.
    """

    suite: str = ""
    prompts: epath.Path | None = None
    samples_per_prompt: int | None = None


class PromptedSuite(Suite):
    """A suite whose images are generated from text prompts.

    Attributes:
      samples_per_prompt: default number of images per prompt.
      one_file_per_prompt: whether all samples of a prompt are written as one picture.
      square_only: whether the scorer accepts only square images.
    """

    samples_per_prompt: ClassVar[int]
    one_file_per_prompt: ClassVar[bool] = False
    square_only: ClassVar[bool] = False

    @abc.abstractmethod
    def read_prompts(self, path: epath.Path | None, config: ConfigDict) -> list[Prompt]:
        """Return all prompts, in order.

        Args:
          path: the user's copy; ignored by suites whose prompts are part of the package.
          config: that the model was trained with; ignored by suites with the same prompts for all.

        Raises:
          UserError: the prompts don't exist or belong to another suite.
        """

    @abc.abstractmethod
    def image_path(self, out: epath.Path, prompt: Prompt, sample: int) -> epath.Path:
        """Return the path where the scorer expects image number `sample` (from 0) of a prompt."""

    @abc.abstractmethod
    def write(self, out: epath.Path, prompt: Prompt, sample: int, images: np.ndarray) -> None:
        """Write a picture in the format that the scorer reads.

        Args:
          out: folder of the images.
          prompt: the prompt.
          sample: number of the first image, from 0.
          images: uint8 [n, H, W, 3]: all samples of the prompt if `one_file_per_prompt`, else one.
        """

    def files(self, prompts: Sequence[Prompt], samples: int) -> list[str]:
        """Return all files that `write` writes, relative to the folder of the images."""
        root = epath.Path("/")
        paths = [self.image_path(root, prompt, i) for prompt in prompts for i in range(samples)]
        return list(dict.fromkeys(str(path.relative_to(root)) for path in paths))

    def request(self, values: Mapping[str, Any], out: epath.Path | None = None) -> PromptedRequest:
        """Build the request from the values of all flags.

        Args:
          values: values of all flags.
          out: folder for the images; None is --out.
        """
        return PromptedRequest(
            out=out or output_folder("out"),
            suite=self.name,
            prompts=path_of(values, "prompts") if "prompts" in values else None,
            samples_per_prompt=values["samples_per_prompt"],
            **request_fields(values),
        )

    def first_prompts(
        self, path: epath.Path | None, num: int | None, config: ConfigDict
    ) -> list[Prompt]:
        """Return the first `num` prompts; None is all. `path` and `config` as in `read_prompts`.

        Raises:
          UserError: the prompts don't exist, or there are fewer than `num`.
        """
        found = self.read_prompts(path, config)
        if num is not None and not 1 <= num <= len(found):
            raise UserError(
                f"--num={num}: {self.name} has {len(found)} prompts: give 1 to {len(found)}"
            )
        return found[:num]

    def make_images(self, request: PromptedRequest) -> list[Prompt]:
        """Generate the images of a request in the scorer's layout; resume if some already exist.

        Returns:
          The prompts.

        Raises:
          UserError: a setting or an input file is invalid, or the folder has images of a different
            request.
        """
        samples = request.samples_per_prompt
        samples = self.samples_per_prompt if samples is None else samples
        if samples < 1 or (self.one_file_per_prompt and samples != self.samples_per_prompt):
            allowed = f"{self.samples_per_prompt}" if self.one_file_per_prompt else "1 or more"
            raise UserError(f"--samples_per_prompt={samples}: must be {allowed} for {self.name}")
        prompts = self.first_prompts(request.prompts, request.num, read_config(request.workdir))
        loaded, generator = open_generator(request)
        if self.square_only and generator.size and len(set(generator.size)) > 1:
            raise UserError(
                f"--height and --width must be equal: {self.name} scores only square images"
            )
        encoder = load_text_encoder(loaded)
        texts = [prompt.text for prompt in prompts]
        description = describe(request, loaded, encoder.space.identity) | {
            "samples": samples,
            "images": samples * len(prompts),
            "prompts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            FILES: self.files(prompts, samples),
        }
        # Before anything is written.
        check_prompts(encoder, texts, request.negative_prompt)
        path = path_beside(request.out)
        claim(request.out, path, description, overwrite=request.overwrite)
        encoded = encode_prompts(loaded, texts, request.negative_prompt, encoder)
        with matmul_precision(request.matmul_precision):
            self.generate_missing(
                loaded, generator, prompts, encoded, samples, request.seed, request.out
            )
        count = samples * len(prompts)
        say(
            f"{request.out}: {count} images of {len(prompts)} prompts, from checkpoint "
            f"{loaded.train_step}"
        )
        return prompts

    def generate_missing(
        self,
        loaded: Loaded,
        generator: Generator,
        prompts: Sequence[Prompt],
        encoded: EncodedPrompts,
        samples: int,
        seed: int,
        out: epath.Path,
    ) -> None:
        """Generate the images that `out` doesn't contain yet; the first process writes them.

        Args:
          loaded: the model.
          generator: its generator.
          prompts: all prompts.
          encoded: the text embeddings of the prompts, in the same order.
          samples: number of images per prompt.
          seed: seed of the images.
          out: folder of the images.

        Raises:
          WriteError: an image can't be written.
        """
        first = broadcast_from_first(self._count_existing(out, prompts, samples))
        rows = np.repeat(np.arange(len(prompts)), samples)
        waiting: list[np.ndarray] = []
        # Resume at the beginning of a batch, because the same batches give the same bits.
        at = first - first % generator.batch_size_of(len(rows)) if first < len(rows) else first
        failure = None
        with progress_bar(len(rows), self.name) as bar:
            bar.update(at)
            conditions = encoded.conditions
            for batch in generator.batches(loaded.params, conditions, seed, at, rows):
                for image in to_rgb(to_uint8(batch, at)):
                    at += 1
                    if at <= first:
                        continue
                    waiting.append(image)
                    if len(waiting) < (samples if self.one_file_per_prompt else 1):
                        continue
                    if jax.process_index() == 0 and failure is None:
                        sample = (at - len(waiting)) % samples
                        try:
                            self.write(out, prompts[rows[at - 1]], sample, np.stack(waiting))
                        except WriteError as error:
                            failure = error
                    waiting = []
                bar.update(len(batch))
                if failure and jax.process_count() == 1:
                    break

        def raise_failure() -> None:
            if failure:
                raise failure

        # The other processes generate all images, and learn only here that they can't be written.
        run_on_first(raise_failure)

    def _count_existing(self, out: epath.Path, prompts: Sequence[Prompt], samples: int) -> int:
        """Count the existing samples from the first one up to the first that is missing."""
        index = 0
        for prompt in prompts:
            for sample in range(samples):
                if not is_whole_png(self.image_path(out, prompt, sample)):
                    return index - (sample if self.one_file_per_prompt else 0)
                index += 1
        return index
