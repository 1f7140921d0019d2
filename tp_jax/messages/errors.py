"""Errors that end a command with a one-line message, which `tp_jax.cli.start` prints."""


class UserError(Exception):
    """A mistake that the user can fix, such as a wrong flag or a missing file (exit code 2).

    The message is one line and names what was wrong, where, and what would be right.
    """


class NotFiniteError(UserError):
    """An array has NaN or infinity."""


class TrainingError(Exception):
    """Training can't continue, as after a non-finite loss (exit code 1).

    Checkpoints that were saved before are kept.
    """


class WriteError(Exception):
    """A file can't be written, as on a full disk or in a read-only folder (exit code 1).

    The file has its old content, or doesn't exist if it is new.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 200 characters, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
