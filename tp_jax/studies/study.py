"""What a study is: variants of one config, and the variant that the others are compared with.

No module that STUDIES imports may import jax, so that --help and flag errors are quick.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.messages.errors import UserError
from tp_jax.models import TransformerConfig
from tp_jax.thinking import ThinkingConfig

THINKING = "model.thinking."
# The variant that is the frozen base of the others.
BASE = "base"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant of a study; every seed of it is a cell.

    Attributes:
      name: letters, digits, "." and "-"; it names folders.
      what: what it is, in one line.
      fields: the config fields that it sets, such as {"model.thinking.gate": "random"}.
      flags: the sampling flags that its evaluation sets, such as {"latent_steps": 1}.
      config_variants: variants of the config file that it adds, such as "lora".
      run_of: the variant whose run it evaluates; "" trains a run of its own.
      base_of: the variant whose run is its `config.init.base`; "" for none.
    """

    name: str
    what: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config_variants: str = ""
    run_of: str = ""
    base_of: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of variants for one config.

    Attributes:
      reference: name of the variant that the others are compared with.
      variants: the variants, in the order of tables. A variant comes after those whose runs it
        uses.
      left_out: variants that make no sense for this config, {name: reason}.
    """

    reference: str
    variants: tuple[Variant, ...]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Variant:
        """Return the variant with a name."""
        return next(variant for variant in self.variants if variant.name == name)

    def with_base(self, base: Variant | None) -> "Study":
        """Return the study with every run on a frozen base.

        Args:
          base: the variant that trains the base; None if the base is a published checkpoint, which
            can't be a variant because it has no workdir.
        """
        left_out, variants = dict(self.left_out), []
        for variant in self.variants:
            if variant.name == BASE or (base is None and variant.run_of == BASE):
                continue
            if not variant.run_of:
                variant = dataclasses.replace(variant, base_of=BASE if base else "")
            variants.append(variant)
        if base is None:
            gone = {BASE} | {v.name for v in self.variants if v.run_of == BASE}
            reason = "the base is a published checkpoint, which has no workdir to evaluate"
            left_out |= dict.fromkeys(sorted(gone), reason)
        else:
            variants.insert(0, base)
        return dataclasses.replace(self, variants=tuple(variants), left_out=left_out)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The config that a study varies, and what a study asks of it.

    Attributes:
      config: the config with the fields of the command line.
    """

    config: ConfigDict

    @property
    def model(self) -> TransformerConfig:
        """Return the config of the model."""
        return config_lib.model_config(self.config)

    @property
    def thinking(self) -> ThinkingConfig:
        """Return the section `config.model.thinking`."""
        return self.model.thinking

    @property
    def frames(self) -> bool:
        """Return whether each latent step is decoded to a frame."""
        return self.model.condition_kind == "frame"

    @property
    def fine_tunes(self) -> bool:
        """Return whether only thinking is trained, on a frozen base."""
        return self.config.train.trainable == "thinking"

    def need(self, *fields: str) -> None:
        """Raise a UserError unless the config has these fields."""
        known = config_lib.flat(self.config)
        for field in fields:
            if field not in known:
                raise UserError(f"this study needs config.{field}, which this version doesn't have")

    def need_thinking(self) -> None:
        """Raise a UserError unless the model thinks."""
        if not self.thinking.layers:
            raise UserError(
                "this study varies how a model thinks, but config.model.thinking.layers=(): name "
                "a config that thinks, such as configs/shapes.py:think"
            )


@dataclasses.dataclass(frozen=True)
class Build:
    """A study that is built for a config.

    Attributes:
      summary: what the study compares, in one line, for help.
      build: returns the study for a setting; raises a UserError if it makes no sense there.
    """

    summary: str
    build: Callable[[Setting], Study]


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of a config with fields changed.

    Args:
      config: the config, which stays as it is.
      fields: new values, {"model.thinking.rank": 8}.

    Raises:
      UserError: a field doesn't exist.
    """
    changed = ConfigDict(config.to_dict()).lock()
    known = config_lib.flat(changed)
    for name, value in fields.items():
        if name not in known:
            raise UserError(f"config.{name} doesn't exist in this version: the study sets it")
        changed.update_from_flattened_dict({name: value})
    return changed


def check_names(study: Study) -> None:
    """Raise a ValueError unless the names of the variants are distinct and can name folders."""
    seen: set[str] = set()
    for variant in study.variants:
        if not re.fullmatch(r"[A-Za-z0-9.-]+", variant.name) or variant.name in seen:
            raise ValueError(f"{variant.name!r} can't be the name of a variant")
        if {variant.run_of, variant.base_of} - {""} - seen:
            raise ValueError(f"{variant.name} must follow the variants whose runs it uses")
        seen.add(variant.name)
    if study.reference not in seen:
        raise ValueError(f"the reference {study.reference} isn't a variant")
