"""Recognise Git LFS pointers, which stand in for files that weren't downloaded."""

from etils import epath

from tp_jax.messages.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"


def check_pointer(path: epath.Path, head: bytes) -> None:
    """Raise a UserError if a file is a Git LFS pointer.

    Args:
      path: the file, for the error message.
      head: its first bytes, or all of them.
    """
    if head.startswith(POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}"
        )
