"""A config as the command line gives it: a file, variants of it, and fields."""

import dataclasses
import pathlib
import runpy
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.studies.study import with_fields
from tp_jax.values.texts import read_path


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """--config=PATH:VARIANTS with --config.FIELD=VALUE.

    Attributes:
      path: the config file.
      variants: its variants, in their order.
      fields: fields that differ from the file's, {"train.steps": 5}.
    """

    path: str
    variants: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, argument: str, config: ConfigDict) -> "ConfigFile":
        """Return the config file of a value of --config, and of the config that the flags made.

        Args:
          argument: the value of --config.
          config: the config with all flags --config.FIELD=VALUE.
        """
        path, _, variants = read_path(argument).partition(":")
        file = cls(path, tuple(variants.split(",")) if variants else ())
        before, after = config_lib.flat(file.load()), config_lib.flat(config)
        changed = {name: value for name, value in after.items() if before[name] != value}
        return dataclasses.replace(file, fields=changed)

    @property
    def argument(self) -> str:
        """Return the value of --config."""
        return ":".join([self.path, ",".join(self.variants)] if self.variants else [self.path])

    def adding(self, variants: str, fields: Mapping[str, Any]) -> "ConfigFile":
        """Return this config with more variants of the file, and with fields changed.

        Args:
          variants: names of variants, separated by commas; "" for none.
          fields: values of fields; they replace those of the same name.
        """
        more = tuple(variants.split(",")) if variants else ()
        return ConfigFile(self.path, self.variants + more, {**self.fields, **fields})

    def without(self, variant: str) -> "ConfigFile":
        """Return this config without one of its variants."""
        kept = tuple(name for name in self.variants if name != variant)
        return dataclasses.replace(self, variants=kept)

    def load(self) -> ConfigDict:
        """Return the config.

        Raises:
          UserError: the file has no such variant, or there is no such field.
        """
        get_config = runpy.run_path(str(pathlib.Path(self.path)))["get_config"]
        config = get_config(",".join(self.variants)) if self.variants else get_config()
        return with_fields(config, self.fields)

    def flags(self, fields: Mapping[str, Any]) -> list[str]:
        """Return the flags that give this config to `tp_jax.main`.

        Args:
          fields: further values of fields.
        """
        named = {**self.fields, **fields}
        return [
            f"--config={self.argument}",
            *(as_flag(f"config.{name}", value) for name, value in named.items()),
        ]


def as_flag(name: str, value: Any) -> str:
    """Return a flag as it is written on the command line.

    Example:
      >>> as_flag("config.train.steps", 5), as_flag("look", True)
      ('--config.train.steps=5', '--look=true')
      >>> as_flag("config.model.thinking.layers", (4, 8)), as_flag("labels", ())
      ('--config.model.thinking.layers=4,8', '--labels=()')
    """
    if isinstance(value, tuple):
        value = ",".join(map(str, value)) or "()"
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
