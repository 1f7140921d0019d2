"""Check the path of an output: a file or a folder, by its ending, that can be written to."""

import os

from etils import epath

from tp_jax.messages.errors import UserError

# Endings that a folder may not have, because the user takes it for a file. A new folder may have
# other dots in its name, as run-1.5 does.
FILE_ENDINGS = frozenset([
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".gif", ".webp", ".avif",
    ".heic", ".bmp", ".tif", ".tiff", ".svg", ".ico", ".eps", ".ppm", ".pgm", ".tga", ".exr",
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".npz", ".npy", ".mat", ".h5", ".hdf5",
    ".pkl", ".pickle", ".msgpack", ".parquet", ".arrow", ".tfrecord", ".tfrecords", ".pt",
    ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".onnx", ".json", ".jsonl", ".csv",
    ".tsv", ".txt", ".md", ".rst", ".html", ".htm", ".log", ".yaml", ".yml", ".toml", ".xml",
    ".py", ".ipynb", ".sh", ".pdf", ".docx", ".xlsx", ".pptx", ".zip", ".tar", ".gz", ".tgz",
    ".bz2", ".xz", ".zst", ".7z", ".rar",
])  # fmt: skip


def check_writable(name: str, path: epath.Path, *, folder: bool = False) -> None:
    """Check that a file or folder can be created or written to, before long work.

    Args:
      name: the flag or field, for the error message.
      path: its value. Buckets aren't checked.
      folder: the path must be that of a folder, or new.

    Raises:
      UserError: it can't.
    """
    if "://" in str(path):
        return
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    needed = os.W_OK | (os.X_OK if place.is_dir() else 0)
    in_the_way = (folder or place != path) and not place.is_dir()
    if in_the_way or not os.access(place, needed):
        raise UserError(f"{name}={path}: {place} can't be written to; name another")


def output_file(name: str, path: epath.Path, ending: str) -> epath.Path:
    """Return the path of a file to write.

    Args:
      name: the flag or field, for the error message.
      path: its value.
      ending: the ending that it must have, such as ".json", in any case.

    Raises:
      UserError: it has another ending, or is a folder.
    """
    if path.is_dir():
        raise UserError(f"{name}={path} is a folder: name a file FILE{ending}")
    if path.suffix.lower() != ending:
        raise UserError(f"{name}={path}: name a file FILE{ending}")
    return path


def output_folder(name: str, path: epath.Path) -> epath.Path:
    """Return the path of a folder to write files to; it needn't exist.

    Args:
      name: the flag or field, for the error message.
      path: its value.

    Raises:
      UserError: it is a file, or doesn't exist and has the ending of a file.
    """
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name}={path} is a file: name a folder; one can't be created there")
    if path.suffix.lower() in FILE_ENDINGS:
        raise UserError(f"{name}={path}: name a folder, not a {path.suffix} file")
    return path


def is_output_file(name: str, path: epath.Path, ending: str) -> bool:
    """Return whether an output that may be a file or a folder is a file.

    Args:
      name: the flag or field, for the error message.
      path: its value.
      ending: the ending of files, such as ".npz", in any case.

    Raises:
      UserError: a file has another ending, or a folder has that of a file.
    """
    as_file, wanted = path.suffix.lower() == ending, f"give FILE{ending} or a folder"
    if path.exists() and path.is_dir() == as_file:
        raise UserError(f"{name}={path} is a {'folder' if as_file else 'file'}: {wanted}")
    if not (as_file or path.is_dir()) and path.suffix.lower() in FILE_ENDINGS:
        raise UserError(f"{name}={path}: {wanted}")
    return as_file
