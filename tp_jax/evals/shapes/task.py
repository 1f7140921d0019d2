"""Shapes as a task: prompts of all skills in turn, and a verdict on each image."""

import dataclasses
from typing import ClassVar

import numpy as np

from tp_jax.evals.geneval.rules import judge, select
from tp_jax.evals.prompt import Prompt
from tp_jax.evals.shapes.scores import colours, detect, make_prompts
from tp_jax.evals.task import Judgement, Task
from tp_jax.models.parameters import Params
from tp_jax.pictures.reading import to_rgb
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.prompts import encode_prompts
from tp_jax.sampling.request import picture_size
from tp_jax.worlds.shapes.scenes import DIFFICULTIES


@dataclasses.dataclass(frozen=True)
class ShapesTask(Task):
    """The prompts of Shapes, one of every skill in turn.

    Attributes:
      prompts: in the order of the conditions.
    """

    score_name: ClassVar[str] = "correct images"
    prompts: tuple[Prompt, ...]

    def judge(
        self, generator: Generator, params: Params, images: np.ndarray, seed: int
    ) -> Judgement:
        """Judge images by the rules of GenEval, as in `Task`."""
        prompts = self.prompts[: len(images)]
        verdicts = [_judge(*pair) for pair in zip(to_rgb(images), prompts, strict=True)]
        scores = np.array([correct for correct, _ in verdicts], np.float64)
        return Judgement(scores, [text for _, text in verdicts], pictures=())


def _judge(image: np.ndarray, prompt: Prompt) -> tuple[bool, str]:
    objects = select(detect(image, prompt.metadata.get("min_size", 0.0)), prompt.metadata["tag"])
    correct, reason = judge(
        objects, prompt.metadata, lambda group, name: colours(image, group, name)
    )
    return correct, f"{prompt.text}: {'correct' if correct else reason}"


def make_task(model: Loaded) -> ShapesTask:
    """Return the task for a model of text.

    Raises:
      UserError: the model takes no text, or gives latents that can't be decoded.
    """
    picture_size(model)
    by_skill: dict[str, list[Prompt]] = {}
    for prompt in make_prompts(difficulty=DIFFICULTIES[model.config.shapes.difficulty]):
        by_skill.setdefault(prompt.metadata["tag"], []).append(prompt)
    # The first n conditions then have all skills.
    prompts = tuple(prompt for turn in zip(*by_skill.values(), strict=True) for prompt in turn)
    texts = tuple(prompt.text for prompt in prompts)
    return ShapesTask(encode_prompts(model, texts).conditions, texts, prompts)
