"""What the analysis samples: the condition of each sample, and the groups that it belongs to."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tp_jax.evals import SUITES, find_suite
from tp_jax.evals.task import Task
from tp_jax.messages.errors import UserError
from tp_jax.pictures.galleries import class_caption
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.plan import plan_samples
from tp_jax.workdir.changes import read_class_names

# Most groups: more can't be read in a report, and each needs a table of counts.
MAX_CLASSES, MAX_WORDS = 1_000, 200


@dataclasses.dataclass(frozen=True)
class Groups:
    """Classes, or words of prompts.

    Attributes:
      kind: "class" or "word".
      names: [G].
      members: [K, G] bool, the groups of each of the K conditions.
    """

    kind: str
    names: tuple[str, ...]
    members: np.ndarray


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of one analysis.

    Attributes:
      num: number of samples.
      conditions: the model's condition, arrays with a leading axis of K different conditions.
      captions: [K] a name for each condition; empty strings if there are none.
      groups: of the conditions; None if there are none.
      task: judges samples of the conditions; None if no suite does.
      left_out: {part: why} of what isn't there.
    """

    num: int
    conditions: Any
    captions: tuple[str, ...]
    groups: Groups | None
    task: Task | None
    left_out: dict[str, str]

    @property
    def rows(self) -> np.ndarray:
        """The condition of each sample: they are used in turn."""
        return np.arange(self.num) % len(self.captions)

    def membership(self, first: int, num: int) -> np.ndarray:
        """Return the groups of samples first … first+num-1: bool [num, G], G = 0 without groups."""
        if self.groups is None:
            return np.zeros((num, 0), bool)
        return self.groups.members[self.rows[first : first + num]]


def choose_samples(
    loaded: Loaded, num: int, seed: int, labels: Sequence[int] = (), prompts: Sequence[str] = ()
) -> Samples:
    """Choose what to sample: the given labels or prompts, those of the suite, or all classes.

    The suite is that of `config.evaluation.suite`, or the one with the name of the data source.

    Args:
      loaded: the model.
      num: number of samples.
      seed: seed of the suite's choice.
      labels: classes to use in turn.
      prompts: prompts to use in turn.

    Raises:
      UserError: the model isn't conditioned on what is given, or needs prompts and none are given.
    """
    left_out: dict[str, str] = {}
    task = None
    if labels or prompts:
        left_out["scores"] = "a suite only judges the conditions that it chooses itself"
    else:
        try:
            task = _task(loaded, seed)
        except UserError as error:
            left_out["scores"] = str(error)
        if task is None:
            left_out.setdefault("scores", "no suite can judge single samples of this model")
    if task is not None:
        captions = task.texts or ("",) * len(next(iter(task.conditions.values())))
        groups = group_by_word(task.texts)
        return Samples(num, task.conditions, captions, groups, task, _explain(groups, left_out))

    labels, classes = tuple(dict.fromkeys(labels)), loaded.built.model.classes
    count = None if prompts else len(labels) or max(classes, 1)
    plan = plan_samples(loaded, count, labels=labels, prompts=tuple(dict.fromkeys(prompts)))
    captions, groups = tuple(map(str, plan.values)), None
    if loaded.built.model.condition_kind == "text":
        groups = group_by_word(captions)
    elif not classes:
        captions = ("",)
    else:
        names = read_class_names(loaded.workdir)
        captions = tuple(class_caption(label, names) for label in plan.values.tolist())
        used = min(num, len(captions))
        if used <= MAX_CLASSES:
            groups = Groups("class", captions[:used], np.eye(len(captions), used, dtype=bool))
        else:
            left_out["group"] = f"more than {MAX_CLASSES} classes: name fewer with --labels"
    return Samples(num, plan.conditions, captions, groups, None, _explain(groups, left_out))


def _explain(groups: Groups | None, left_out: dict[str, str]) -> dict[str, str]:
    if groups is not None:
        return left_out
    return {"group": "the model is conditioned on neither classes nor words"} | left_out


def _task(loaded: Loaded, seed: int) -> Task | None:
    source = loaded.config.data.source
    name = loaded.config.evaluation.suite or (source if source in SUITES else "")
    if not name:
        return None
    return find_suite(name, "config.evaluation.suite").load().task(loaded, seed)


def group_by_word(texts: Sequence[str]) -> Groups | None:
    """Group prompts by the words that they have; None if they have no word.

    Words are compared in lower case. Of more than `MAX_WORDS`, those in most prompts are used.

    Example:
      >>> groups = group_by_word(["a red ring", "A blue ring"])
      >>> groups.names, groups.members.astype(int).tolist()
      (('a', 'ring', 'blue', 'red'), [[1, 1, 0, 1], [1, 1, 1, 0]])
    """
    found = [set(re.findall(r"\w+", text.lower())) for text in texts]
    counts = collections.Counter(word for words in found for word in words)
    names = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
    if not names:
        return None
    members = np.array([[name in words for name in names] for words in found])
    return Groups("word", tuple(names), members)
