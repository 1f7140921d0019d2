"""How the entries start and end: flags in, one line and exit code 2 for what the user can fix."""

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict

from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.messages.renamed import CONFIG_KEYS, config_key_hint
from tp_jax.parallel.processes import join_processes


def run(
    main: Callable[[], None],
    usage: str | Callable[[], str] | None,
    *,
    processes: bool = True,
    define_flags: Callable[[], None] | None = None,
    explain_unknown: Callable[[str], str | None] | None = None,
) -> None:
    """Parses the flags, joins the other processes of the job, runs `main`, and exits.

    Args:
      usage: the text above the list of flags in --help, or what makes it.
      processes: False for an entry that runs by itself.
      define_flags: defines flags that depend on another flag, which `peek` reads.
      explain_unknown: from the name of an unknown flag to what to say of it; None says nothing.

    Exit code 2 for a UserError or bad flags, 1 for a TrainingError: one line on stderr each.
    Anything else is a bug and keeps its traceback.
    """
    # TensorFlow, which clu writes TensorBoard files with, talks a lot when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # So does Orbax of what is no trouble; trouble it raises.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        if define_flags:
            define_flags()
        _parse_flags(usage, explain_unknown or (lambda flag: None))
        if processes:
            join_processes()
        main()
    except UserError as error:
        _exit(2, error)
    except TrainingError as error:
        _exit(1, error)


def _exit(code: int, error: Exception) -> None:
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def peek(name: str) -> str | None:
    """The value of a flag on the command line, before flags are parsed; None where it isn't."""
    return _given().get(name)


def _given() -> dict[str, str]:
    """Values on the command line by the names of their flags."""
    given: dict[str, str] = {}
    arguments = flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False)
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
        print(f"{text}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    # absl writes --noema; people write --no-ema.
    arguments = [re.sub(r"^--?no-", "--no", argument) for argument in sys.argv]
    try:
        rest = flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        known = explain_unknown(error.flagname)
        raise UserError(known or f"{error}; --help names all flags") from error
    except flags.Error as error:
        raise UserError(_without_trace(str(error))) from error
    except OSError as error:
        raise _unreadable_config(error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises any of these for a key or a value that doesn't fit.
        raise UserError(_unknown_key() or f"--config: {_shorten(error)}") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")


def _without_trace(message: str) -> str:
    """The message alone, where ml_collections puts a config file's whole traceback into it."""
    head, trace, tail = message.partition("Traceback (most recent call last):")
    return f"{head.strip()} {tail.strip().splitlines()[-1]}" if trace else message


def _unreadable_config(error: OSError) -> UserError:
    reason = str(error).splitlines()[-1].rpartition("earlier failure to load:")[-1].strip()
    return UserError(f"--config: {reason}; name {flags.FLAGS['config'].help}")


def _shorten(error: Exception) -> str:
    """ml_collections' message without its dump of all fields; old keys with their new names."""
    text = str(error.args[0] if error.args else error).replace("\\n", "\n")
    message = " ".join(text.partition("Other fields present")[0].split()).strip("'\"")
    guess = re.search(r"Did you mean \"[^\"]*\"", text)
    message += f" {guess[0]}?" if guess and guess[0] not in message else ""
    key = re.search(r'Key "(\w+)"', message) or re.fullmatch(r"(\w+)", message)
    named = [old for old in CONFIG_KEYS if key and old.split(".")[-1] == key[1]]
    renamed = [config_key_hint(old) for old in named]
    return "; ".join([message, *filter(None, renamed)])


def _unknown_key() -> str | None:
    """Names the first `--config.a.b` on the command line that the config file doesn't have."""
    given = _given()
    overrides = [name for name in given if name.startswith("config.")]
    if not overrides or not given.get("config"):
        return None
    try:
        config = flags.FLAGS["config"].parser.parse(given["config"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # The file itself is at fault, and the error at hand says how.
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
    """The config of `--config`, which must be given and exist."""
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise UserError(f"--config is missing: {flag.help}")
    try:
        flag.value.seed  # noqa: B018 - a file that wasn't there fails at the first access
    except OSError as error:
        raise _unreadable_config(error) from error
    except AttributeError as error:
        raise UserError(
            "--config: get_config() must return a config made by tp_jax.config.default()"
        ) from error
    return flag.value
