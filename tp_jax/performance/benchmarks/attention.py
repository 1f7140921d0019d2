"""Each implementation of attention that this device has, in train steps and forward passes.

On GPUs also train steps with `config.train.deterministic`: attention is what it changes most.
"""

import dataclasses
from collections.abc import Iterator
from typing import get_args

import jax
from ml_collections import ConfigDict

from tp_jax.messages.errors import UserError, first_line
from tp_jax.models.config import AttentionImplementation
from tp_jax.performance.contenders import forward_contender, plain, train_contender
from tp_jax.performance.measure import Contender, Failed, Group, Run
from tp_jax.performance.options import BenchOptions

DEFAULT = "auto"


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield a group of train steps and one of forward passes, compared to "auto"."""
    base = plain(options.config)
    for title, make in (("train step", train_contender), ("forward pass", forward_contender)):
        names = get_args(AttentionImplementation)
        contenders = [
            make(
                f"{title}, {name}",
                _with(base, name),
                compare_to=() if name == DEFAULT else (f"{title}, {DEFAULT}",),
            )
            for name in names
        ]
        if make is train_contender and jax.default_backend() == "gpu":
            exact = base.copy_and_resolve_references()
            exact.train.deterministic = True
            contenders.append(
                make(f"{title}, deterministic", exact, compare_to=(f"{title}, {DEFAULT}",))
            )
        yield Group(f"attention, {title}", tuple(map(_where_there, contenders)))


def _with(base: ConfigDict, implementation: str) -> ConfigDict:
    copy = base.copy_and_resolve_references()
    copy.model.attention = implementation
    return copy


def _where_there(contender: Contender) -> Contender:
    """Return a contender that fails, with a row that says why, if the device lacks it."""

    def prepare() -> Run:
        try:
            return contender.prepare()
        except (UserError, ValueError, NotImplementedError) as error:
            raise Failed(first_line(error)) from error

    return dataclasses.replace(contender, prepare=prepare)
