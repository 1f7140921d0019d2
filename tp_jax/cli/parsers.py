"""Parse the text of flags and of config fields on the command line.

Importing this module lets ml_collections use these parsers for `--config.SECTION.FIELD`, so that a
tuple that is given twice has the last value, as every other field.
"""

import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tp_jax.values import allowed

TRUE, FALSE = ("true", "t", "1"), ("false", "f", "0")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_BARE = re.compile(r"[A-Za-z_][\w.-]*")


class Parser(flags.ArgumentParser[Any]):
    """Reads values that a type annotation allows, see `tp_jax.values`."""

    def __init__(self, annotation: Any) -> None:
        """Make a parser.

        Args:
          annotation: the type annotation of the values.
        """
        self.annotation = annotation
        what = allowed.allowed(annotation)
        name = {int: "integer", float: "number"}.get(what.kind)
        if what.is_tuple:
            self.syntactic_help = f"{name or 'text'}s, separated by commas"
        elif name:
            self.syntactic_help = f"{'an' if what.kind is int else 'a'} {name}"

    def parse(self, argument: Any) -> Any:
        """Return the value of a text; check a default, which is a value already.

        Raises:
          ValueError: the value isn't allowed; the message says what is.
        """
        return allowed.read(from_text(argument, self.annotation), self.annotation)

    def flag_type(self) -> str:
        """Return the type's name for absl."""
        what = allowed.allowed(self.annotation)
        return "tuple" if what.is_tuple else what.kind.__name__


def from_text(text: Any, annotation: Any) -> Any:
    """Convert a text to the type of an annotation. A text that can't be converted stays a text."""
    what = allowed.allowed(annotation)
    if not isinstance(text, str):
        return text
    if what.is_tuple:
        return _items(text)
    if what.kind is bool:
        lower = text.lower()
        return lower in TRUE if lower in (*TRUE, *FALSE) else text
    return _number(text, what.kind) if what.kind in (int, float) else text


def _number(text: str, kind: type) -> Any:
    try:
        return int(text, 0) if kind is int and re.match(r"0[xo]", text) else kind(text)
    except ValueError:
        return text


def _items(text: str) -> tuple[Any, ...]:
    inner, brackets = text.strip(), (text.strip()[:1], text.strip()[-1:])
    if not inner:
        raise ValueError("is empty: give values, such as 1,2, or () for none")
    if brackets in (("(", ")"), ("[", "]")) and len(inner) > 1:
        inner = inner[1:-1].strip()
    return (
        tuple(_item(item.strip()) for item in inner.removesuffix(",").split(",")) if inner else ()
    )


def _item(text: str) -> Any:
    number = _number(text, int)
    number = _number(text, float) if isinstance(number, str) else number
    if not isinstance(number, str):
        return number
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        return quoted[1] or quoted[2] or ""
    if not _BARE.fullmatch(text):
        raise ValueError(f"{text!r} isn't a value of a list: give values such as 1,2 or one,two")
    return text


class _Section(flags.ArgumentParser[Any]):
    """Refuses to set a whole section of a config."""

    def parse(self, argument: Any) -> Any:
        if isinstance(argument, ConfigDict):
            return argument
        raise ValueError("is a section of the config: set its fields, one by one")


class _ConfigTuple(flags.ArgumentParser[Any]):
    """Reads a tuple of any values; `tp_jax.config.build` checks them."""

    def parse(self, argument: Any) -> Any:
        return _items(argument) if isinstance(argument, str) else argument


class _ConfigText(flags.ArgumentParser[Any]):
    """Reads any text but None, which ml_collections would store as the text "None"."""

    def parse(self, argument: Any) -> Any:
        if argument == "None":
            raise ValueError("no field takes None; leave it empty")
        return argument


for kind in (bool, int, float):
    config_flags.register_flag_parser_for_type(kind, Parser(kind))
config_flags.register_flag_parser_for_type(str, _ConfigText())
config_flags.register_flag_parser_for_type(tuple, _ConfigTuple())
config_flags.register_flag_parser_for_type(ConfigDict, _Section())
