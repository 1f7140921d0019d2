"""Check texts, and expand paths: the ~ of the home folder, and $NAME."""

import os
import re
import unicodedata

# The file systems in use allow this many bytes for the name of a file.
_LONGEST_NAME = 255
_LONGEST_PATH = 4096
_REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_VARIABLE = re.compile(r"\$(\w+|\{\w*\})")


def read_word(text: str) -> str:
    """Return a text if it can be a name.

    Raises:
      ValueError: it is "None", or has quotes, spaces around it, or characters that can't be shown.
    """
    if text == "None":
        raise ValueError("no field takes None; leave it empty, or leave it out")
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad:
        raise ValueError(f"has the character {bad!r}, which no name may have")
    if text != text.strip():
        raise ValueError("begins or ends with a space: leave it out")
    if text[:1] in ("'", '"') or text[-1:] in ("'", '"'):
        raise ValueError("has quotes: leave them out")
    return text


def read_source(text: str) -> str:
    """Return a path that is read, as `read_path`; hf:// paths stay as they are too."""
    return read_word(text) if text.startswith("hf://") else read_path(text)


def read_path(text: str) -> str:
    """Return a path with ~, ~USER, $NAME and ${NAME} expanded; gs:// paths stay as they are.

    Raises:
      ValueError: the user or the variable doesn't exist, or the text can't be a path.

    Example:
      >>> read_path("gs://bucket/~/runs"), read_path("runs/a.b/")
      ('gs://bucket/~/runs', 'runs/a.b/')
      >>> read_path("file:///runs")
      Traceback (most recent call last):
      ValueError: file:// isn't supported: give a local path, such as /runs, or gs://BUCKET...
    """
    text = read_word(text)
    remote = _REMOTE.match(text)
    if remote:
        if remote[1] != "gs":
            local = text.removeprefix("file://")
            example = f", such as {local}," if local != text else ""
            raise ValueError(
                f"{remote[1]}:// isn't supported: give a local path{example} or gs://BUCKET/PATH; "
                f"other object stores can be mounted as folders"
            )
        return text
    if "\\" in text:
        raise ValueError("has a backslash: write / between folders")
    text = _VARIABLE.sub(_variable, text)
    if text.startswith("~"):
        expanded = os.path.expanduser(text)
        if expanded.startswith("~"):
            user = text.partition("/")[0]
            raise ValueError(f"the home folder of {user} isn't known: write the whole path")
        text = expanded
    for name in text.split("/"):
        if len(os.fsencode(name)) > _LONGEST_NAME:
            raise ValueError(f"has a name of more than {_LONGEST_NAME} bytes: give a shorter one")
    if len(os.fsencode(text)) >= _LONGEST_PATH:
        raise ValueError(f"has {_LONGEST_PATH} bytes or more: give a shorter path")
    return text


def _variable(found: re.Match[str]) -> str:
    name = found[1].strip("{}")
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"the environment variable {name!r} isn't set: set it, or write the path")
    return value
