"""Define flags, and read the values of flags."""

import contextlib
import sys
from typing import Annotated, Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from tp_jax.cli.parsers import Parser
from tp_jax.files import outputs
from tp_jax.files.hub import local
from tp_jax.messages.errors import UserError
from tp_jax.values import Range
from tp_jax.values.kinds import Word
from tp_jax.values.texts import read_path

Integers = Annotated[tuple[int, ...], "give whole numbers, such as 0,1,2"]
Numbers = Annotated[tuple[float, ...], Range(), "give numbers, such as 1,1.5,2"]
Names = tuple[Word, ...]
# absl then treats these flags as the calling entry's own and lists them in its --help.
flags.disclaim_key_flags()


class _Serializer(flags.ArgumentSerializer[Any]):
    """Writes a default value in --help as it is written on the command line."""

    def serialize(self, value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        return str(value).lower() if isinstance(value, bool) else str(value)


def define(
    name: str, annotation: Any, default: Any, text: str, values: flags.FlagValues = flags.FLAGS
) -> None:
    """Define a flag. If it is given twice, the last one counts, for lists too.

    Args:
      name: of the flag.
      annotation: its type, which says what is allowed, see `tp_jax.values`. Paths are expanded.
      default: its value if it isn't given; None is allowed for every type.
      text: help text.
      values: the flag values to add it to.
    """
    parser, serializer = Parser(annotation), _Serializer()
    boolean = parser.flag_type() == "bool"
    flags.DEFINE(parser, name, default, text, values, serializer, boolean=boolean)


def read_flag_files() -> list[str]:
    """Return the command line with the flags of --flagfile=FILE in its place.

    Raises:
      UserError: a file can't be read.
    """
    try:
        return flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False)
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        raise UserError(f"--flagfile can't be read: {error}") from error


def define_config(text: str) -> None:
    """Define --config, and --config.SECTION.FIELD for each field.

    Args:
      text: help text.
    """
    # ml_collections reads --flagfile here; `start.run` reports a file that can't be read.
    with contextlib.suppress(UserError):
        read_flag_files()
        config_flags.DEFINE_config_file("config", None, text)
    if "config" not in flags.FLAGS:
        return
    parser: Any = flags.FLAGS["config"].parser
    load = parser.parse
    parser.parse = lambda path: load(read_path(path))


def required(name: str) -> str:
    """Return the value of a flag that must be given.

    Raises:
      UserError: it wasn't given.
    """
    value = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name} is missing: {flags.FLAGS[name].help}")
    return value


def required_path(name: str) -> epath.Path:
    """Return the value of a path flag that must be given; hf:// paths are downloaded.

    Raises:
      UserError: it wasn't given.
    """
    return local(required(name))


def output_file(name: str, ending: str) -> epath.Path | None:
    """Return the file that a flag names; None if the flag isn't given.

    Args:
      name: of the flag.
      ending: that the name must have, such as ".json".

    Raises:
      UserError: it has another ending, or is a folder.
    """
    return required_output_file(name, ending) if flags.FLAGS[name].value else None


def required_output_file(name: str, ending: str) -> epath.Path:
    """Return the file that a flag names, as `output_file`; the flag must be given."""
    return outputs.output_file(f"--{name}", required_path(name), ending)


def output_folder(name: str) -> epath.Path:
    """Return the folder that a flag names, which must be given.

    Raises:
      UserError: it isn't given, is a file, or has the name of one, such as out.json.
    """
    return outputs.output_folder(f"--{name}", required_path(name))
