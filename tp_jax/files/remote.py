"""Paths on Google Cloud Storage: whether they can be reached."""

import importlib.util
import logging
import sys
import threading

from etils import epath

from tp_jax.messages.errors import UserError, first_line

STORE = "gs://"
# Seconds that the store may take for its first answer, and until the user is told of the wait.
# gcsfs tries several times within 50 seconds.
ANSWER_SECONDS, SILENT_SECONDS = 60, 5
REMEDY = (
    "check the network, the name of the bucket and the credentials "
    "(`gcloud auth application-default login`), or give a local folder"
)
# The modules whose exceptions mean that an object store failed.
_MODULES = ("gcsfs.", "fsspec.", "aiohttp.", "google.auth.", "google.api_core.", "google.cloud.")


def check_answers(path: str, name: str) -> None:
    """Check that a gs:// path can be reached; whether something is there doesn't matter.

    Args:
      path: a path that begins with gs://.
      name: the flag that holds it, for the error message.

    Raises:
      UserError: gcsfs isn't installed, or the store doesn't answer or refuses the credentials.
    """
    if not _has_client():
        raise UserError(f"{name}={path}: gs:// paths need gcsfs: pip install -e '.[gcs]'")
    # The clients log every try, with a traceback. The exception is enough.
    for logger in ("gcsfs", "google.auth"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    errors: list[BaseException | None] = []

    def ask() -> None:
        try:
            epath.Path(path).exists()
            errors.append(None)
        except BaseException as error:  # The client raises many types, some of them not Exceptions.
            errors.append(error)

    # A thread, because the client can't be given a limit of time for all its tries.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(min(SILENT_SECONDS, ANSWER_SECONDS))
    if thread.is_alive():
        print(
            f"waiting for an answer to {name}={path}, at most {ANSWER_SECONDS} s", file=sys.stderr
        )
        thread.join(ANSWER_SECONDS)
    error = errors[0] if errors else TimeoutError(f"no answer within {ANSWER_SECONDS} s")
    if error is not None:
        raise UserError(f"{name}={path} can't be reached ({first_line(error)}): {REMEDY}")


def _has_client() -> bool:
    return any(importlib.util.find_spec(library) for library in ("gcsfs", "tensorflow"))


def store_error(error: BaseException) -> str | None:
    """Return a message if an exception comes from an object store; None for other exceptions."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    for cause in chain:
        if f"{type(cause).__module__}.".startswith(_MODULES):
            return f"Google Cloud Storage failed ({first_line(cause)}): {REMEDY}"
    return None
