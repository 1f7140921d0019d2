"""Start and end a command: parse flags, run it, report user errors in one line.

This module doesn't import jax, so that --help and flag errors are quick.
"""

import contextlib
import difflib
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from tp_jax import __version__
from tp_jax.cli import runtime, signals
from tp_jax.cli.flags import read_flag_files
from tp_jax.cli.flags import required as required_value
from tp_jax.files.atomic import disk_error
from tp_jax.files.remote import STORE, check_answers, store_error
from tp_jax.messages.errors import TrainingError, UserError, WriteError
from tp_jax.messages.renamed import CONFIG_KEYS, config_key_hint


def run(
    main: Callable[[], None],
    usage: str | Callable[[], str] | None,
    *,
    required: Sequence[str] | Callable[[], Sequence[str]] = (),
    processes: bool = True,
    keeps_programs: bool = True,
    saves_on_sigterm: bool = False,
    define_flags: Callable[[], None] | None = None,
    explain_unknown: Callable[[str], str | None] | None = None,
) -> None:
    """Parse the flags, join the other processes of the job, run `main`, and exit.

    The exit code is 2 for a UserError or a wrong flag; 1 for a TrainingError, a WriteError or an
    OSError of a full or read-only disk; and 128 + the number of a signal, as `cli.signals` says;
    with one line on stderr. An exception of an object store's client also gives one line and exit
    code 1. Any other exception is a bug and keeps its traceback.

    Args:
      main: runs the command. It imports the modules that do the work, which import jax.
      usage: the text above the list of flags in --help, or a function that returns it.
      required: names of the flags that must be given, or a function that returns them.
      processes: False for a command that always runs in a single process; it also compiles
        without the settings of `cli.runtime`.
      keeps_programs: whether compiled programs are kept for the next start; False for a command
        that measures compiling.
      saves_on_sigterm: whether the command leaves SIGTERM to jax in a job of several processes, and
        asks it when to save.
      define_flags: defines the flags that depend on another flag, which `peek` reads.
      explain_unknown: maps the name of an unknown flag to an error message, or to None for the
        default message.
    """
    # Orbax logs warnings about situations that need no action; it raises its errors, which its
    # threads also log, with tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if processes:
        runtime.keep_freed_memory()
    with signals.handled():
        try:
            read_flag_files()
            if define_flags:
                define_flags()
            _parse_flags(usage, explain_unknown or (lambda flag: None))
            for name in required() if callable(required) else required:
                if name == "config":
                    required_config()
                else:
                    required_value(name)
            _check_stores()
            if processes:
                from tp_jax.parallel.processes import join_processes

                join_processes()
                if not saves_on_sigterm:
                    signals.take_back()
                if keeps_programs:
                    runtime.keep_compiled_programs()
            main()
        except UserError as error:
            _exit(2, error)
        except (TrainingError, WriteError) as error:
            _exit(1, error)
        except signals.Interrupted as interrupted:
            sys.exit(128 + interrupted.number)
        except Exception as error:
            message = store_error(error)
            if message:
                _exit(1, TrainingError(message))
            if isinstance(error, OSError):
                _exit(1, disk_error(error))
            raise


def _exit(code: int, error: Exception) -> None:
    message = " ".join(str(error).split())
    # A value in the message may have characters that a terminal would act on, or can't show.
    message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    # Longer than any path: a value that would hide the rest.
    message = re.sub(r"\S{1000,}", lambda found: f"{found[0][:100]}…", message)
    with contextlib.suppress(OSError):  # Nobody reads it any more.
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def _check_stores() -> None:
    """Raise a UserError for the first gs:// path of a flag or the config that can't be reached."""
    for name, value in _texts({f"--{name}": flags.FLAGS[name].value for name in flags.FLAGS}):
        if value.startswith(STORE):
            check_answers(value, name)


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each text, also in the sections of a config."""
    for name, value in values.items():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, ConfigDict):
            yield from _texts({f"{name}.{key}": inner for key, inner in value.items()})


def peek(name: str) -> str | None:
    """Return the value of a flag before the flags are parsed; None if it isn't given."""
    return _given().get(name)


def _given() -> dict[str, str]:
    """Return the flags on the command line as {name: value}."""
    given: dict[str, str] = {}
    arguments = read_flag_files()
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-"):
            given[name] = value if equals else following
    return given


def _parse_flags(
    usage: str | Callable[[], str] | None, explain_unknown: Callable[[str], str | None]
) -> None:
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        text = usage() if callable(usage) else usage
        print(f"{text}\n{flags.FLAGS.main_module_help()}\n\n  --version: print the version")
        sys.exit(0)
    if "--version" in sys.argv[1:]:
        print(f"tp_jax {__version__}")
        sys.exit(0)
    # absl expects --noema; many people write --no-ema.
    arguments = [re.sub(r"^--?no-", "--no", argument) for argument in sys.argv]
    try:
        rest = flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        known = explain_unknown(error.flagname)
        raise UserError(known or f"{error}; --help lists all flags") from error
    except flags.Error as error:
        if "get_config() takes 0 positional arguments" in str(error):
            path = (peek("config") or "").partition(":")[0]
            raise UserError(f"--config: {path} has no variants: leave out the colon") from error
        raise UserError(_without_trace(str(error))) from error
    except OSError as error:
        raise _unreadable_config(error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises any of these for an unknown key or a value of the wrong type.
        raise UserError(_unknown_key() or f"--config: {_shorten(error)}") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")


def _without_trace(message: str) -> str:
    """Remove the config file's traceback, which ml_collections puts into some messages."""
    head, trace, tail = message.partition("Traceback (most recent call last):")
    return f"{head.strip()} {tail.strip().splitlines()[-1]}" if trace else message


def _unreadable_config(error: OSError) -> UserError:
    reason = str(error).splitlines()[-1].rpartition("earlier failure to load:")[-1].strip()
    path = pathlib.Path((peek("config") or "").partition(":")[0])
    close = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")])
    hint = f"did you mean {path.parent / close[0]}?" if close else ""
    return UserError(f"--config: {reason}; {hint or 'name ' + str(flags.FLAGS['config'].help)}")


def _shorten(error: Exception) -> str:
    """Remove ml_collections' dump of all fields; add the new names of renamed keys."""
    text = str(error.args[0] if error.args else error).replace("\\n", "\n")
    message = " ".join(text.partition("Other fields present")[0].split()).strip("'\"")
    guess = re.search(r"Did you mean \"[^\"]*\"", text)
    message += f" {guess[0]}?" if guess and guess[0] not in message else ""
    key = re.search(r'Key "(\w+)"', message) or re.fullmatch(r"(\w+)", message)
    named = [old for old in CONFIG_KEYS if key and old.split(".")[-1] == key[1]]
    renamed = [config_key_hint(old) for old in named]
    return "; ".join([message, *filter(None, renamed)])


def _unknown_key() -> str | None:
    """Return a message on the first `--config.a.b` that the config file doesn't have."""
    given = _given()
    overrides = [name for name in given if name.startswith("config.")]
    if not overrides or not given.get("config"):
        return None
    try:
        config = flags.FLAGS["config"].parser.parse(given["config"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # The config file itself is wrong; the original error describes how.
    for name in overrides:
        node, path = config, "config"
        for key in name.split(".")[1:]:
            if not isinstance(node, ConfigDict) or key not in node:
                known = list(node) if isinstance(node, ConfigDict) else []
                renamed = config_key_hint(name.removeprefix("config."))
                if renamed:
                    return f"unknown config key --{name}: {renamed}"
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                return f"unknown config key --{name}: {path} has no {key!r}; {hint}"
            node, path = node[key], f"{path}.{key}"
    return None


def required_config() -> ConfigDict:
    """Return the config of --config.

    Raises:
      UserError: the flag is missing, or the file can't be read or doesn't return a config.
    """
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise UserError(f"--config is missing: {flag.help}")
    try:
        flag.value.seed  # noqa: B018 - a missing file fails at the first access
    except OSError as error:
        raise _unreadable_config(error) from error
    except AttributeError as error:
        raise UserError(
            "--config: get_config() must return a config made by tp_jax.config.default()"
        ) from error
    return flag.value
