"""Check files that were downloaded, before a library reads them.

A download often leaves another file than the wanted one: an empty or a cut file, a Git LFS pointer,
or the web page of an error. Libraries read some of these without a word, or raise long errors.
"""

import zipfile
from typing import Any

from etils import epath

from tp_jax.files.jsonl import read_json
from tp_jax.files.pointers import check_pointer
from tp_jax.files.safetensors import read_safetensors
from tp_jax.messages.errors import UserError

WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
ZIP = b"PK\x03\x04"
# The first bytes of compressed files.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    ZIP: "zip",
}
# Torch's own files are zip files, or pickles if old.
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def check_download(path: epath.Path) -> None:
    """Check that a downloaded file is there, complete, and of the kind that its ending says.

    .safetensors files must hold the data of all arrays of their header, .json files must be JSON
    objects, .txt files must be UTF-8 text, and .pt, .pth, .ckpt and .bin files must not be cut zip
    files. Of other files only the first bytes are looked at.

    Raises:
      UserError: it isn't; the message names the file and what to do.
    """
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: there is no such file; download it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    if not head:
        raise UserError(
            f"{path} is damaged or isn't a {path.suffix} file (it is empty): download it again"
        )
    check_pointer(path, head)
    if head.lstrip().lower().startswith(WEB_PAGES):
        raise UserError(
            f"{path} is a web page, not the file itself: download it again (the site may want a "
            f"login, or the link to the raw file)"
        )
    is_torch = path.suffix in TORCH_SUFFIXES
    for start, name in COMPRESSED.items():
        if head.startswith(start) and not (is_torch and start == ZIP):
            raise UserError(f"{path} is compressed with {name}: unpack it")
    if path.suffix == ".safetensors":
        read_safetensors(path)
    elif path.suffix == ".json":
        read_downloaded_json(path)
    elif path.suffix == ".txt":
        _check_text(path)
    elif is_torch and head.startswith(ZIP) and not _is_whole_zip(path):
        raise UserError(f"{path} is cut: download it again")


def read_downloaded_json(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object from a downloaded file.

    Raises:
      UserError: the file is cut, or isn't a JSON object.
    """
    is_index = ".index." in path.name
    problem = "isn't an index of .safetensors files" if is_index else "is damaged"
    content = read_json(path, remedy="download it again", problem=problem)
    if content.keys() == {"error"}:
        raise UserError(f"{path} {problem} (it holds only an error message): download it again")
    return content


def _is_whole_zip(path: epath.Path) -> bool:
    with path.open("rb") as file:
        return zipfile.is_zipfile(file)


def _check_text(path: epath.Path) -> None:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged (it isn't UTF-8 text): download it again") from None
    if not text.strip():
        raise UserError(f"{path} is empty: download it again")
