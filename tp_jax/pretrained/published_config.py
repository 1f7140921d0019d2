"""The config.json that diffusers stores beside weights: what the weights alone don't determine."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from etils import epath

from tp_jax.files.downloads import check_download, read_downloaded_json
from tp_jax.messages.errors import UserError

NAME = "config.json"


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """A config.json of diffusers; without fields if there is none beside the weights.

    Attributes:
      path: the file, for error messages.
      fields: its content.
    """

    path: str = NAME
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def get(self, name: str, kind: type = int) -> Any:
        """Return a field as a number of type `kind`; None if it is missing or null.

        Raises:
          UserError: it isn't such a number.
        """
        value = self.fields.get(name)
        accepted = (int, float) if kind is float else kind
        if value is None:
            return None
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise UserError(f"{self.path}: {name}={json.dumps(value)} isn't a number")
        return kind(value)

    def heads(self, given: int | None) -> int | None:
        """Return the number of attention heads of --heads or of this file; None if neither has it.

        Raises:
          UserError: they contradict each other.
        """
        told = self.get("num_attention_heads")
        if None not in (given, told) and given != told:
            raise UserError(
                f"--heads={given}, but {self.path} says num_attention_heads={told}: leave the flag "
                f"out, or give the config.json of these weights"
            )
        return told if given is None else given

    def check(self, **implied: Any) -> None:
        """Raise a UserError for the first field that is given and isn't what the weights imply."""
        for name, value, told in self._differences(implied):
            raise UserError(
                f"{self.path}: {name}={json.dumps(value)}, but the weights imply "
                f"{json.dumps(told)}: give the config.json of these weights"
            )

    def check_only(self, **supported: Any) -> None:
        """Raise a UserError for the first field that is given and has a value we don't compute."""
        for name, value, only in self._differences(supported):
            raise UserError(
                f"{self.path}: {name}={json.dumps(value)} isn't supported, only "
                f"{json.dumps(only)}: give another model"
            )

    def _differences(self, expected: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Yield (name, value, expected value) of the fields that are given and differ."""
        for name, wanted in expected.items():
            value = self.fields.get(name)
            if value is not None and value != wanted:
                yield name, value, wanted


def read_published_config(
    weights: epath.Path, classes: Collection[str], others: Mapping[str, str] = MappingProxyType({})
) -> PublishedConfig:
    """Read the config.json beside a file of weights, if diffusers wrote it.

    Args:
      weights: the file of weights, or the index of shards.
      classes: the classes of diffusers that it may describe.
      others: the --kind of other classes, for the error message.

    Raises:
      UserError: it is damaged, or describes another model.
    """
    path = weights.parent / NAME
    if not classes or not path.exists():
        return PublishedConfig()
    check_download(path)
    fields = read_downloaded_json(path)
    name = fields.get("_class_name")
    if "model_type" in fields and name is None:
        return PublishedConfig()  # That of a text encoder, written by transformers.
    if name not in (None, *classes):
        remedy = "give the weights of such a model, in a folder with their own config.json"
        remedy = f"--kind={others[name]} converts it" if name in others else remedy
        raise UserError(f"{path} describes the class {name}, not {' or '.join(classes)}: {remedy}")
    return PublishedConfig(str(path), fields)
