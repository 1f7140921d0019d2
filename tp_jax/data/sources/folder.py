"""A folder of images, in one folder per class or without classes."""

import dataclasses
import unicodedata
from typing import Any

from etils import epath

from tp_jax.data.source import Source
from tp_jax.files.folders import describe_files
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say

# The endings of the formats that `decode_image` reads, in lower case.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".jp2", ".ppm", ".pgm", ".tga",
)  # fmt: skip
# Folders with only these names are splits, if they hold folders only.
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
# What operating systems, network drives and archives create on their own, in lower case.
SYSTEM_NAMES = {
    "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "lost+found", "__macosx", "__pycache__",
    "thumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information",
    "@recently-snapshot", "~snapshot", "network trash folder", "temporary items",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Files:
    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files[index]
        return {"image": epath.Path(path).read_bytes(), "label": label}


class _FolderSource(Source):
    records: _Files

    def record_name(self, index: int) -> str:
        return self.records.files[index][0]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is ignored, because it is hidden or the system's own.

    Example:
      >>> [is_hidden(name) for name in ("._0.png", "@eaDir", "Thumbs.db", "0.png")]
      [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image(name: str) -> bool:
    """Return whether a file is an image of a data set, by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def open_folder(dir: str, split: str, section: str) -> Source:
    """Open a folder of images: `dir`/CLASS/…, or `dir`/… without classes.

    If `dir`/`split` is a folder, it is used instead of `dir`. Classes and files are sorted by name;
    label 0 is the first class. Images next to class folders are ignored, with a warning. A folder
    without class folders has no classes, and all its images have label 0. Folders in a class folder
    belong to the class, at any depth. If no class folder has images of its own, `split` must be "",
    because the folders may be splits.

    Hidden names and those of the system (`is_hidden`) are ignored. Other files are counted in a
    warning.

    Args:
      section: section of the config that names the source, for error messages.

    Raises:
      UserError: the folder doesn't exist or holds no images, or a class folder holds none.
    """
    root = epath.Path(dir)
    if not dir or not root.is_dir():
        problem = f"{section}.dir={dir!r} doesn't exist" if dir else f"{section}.dir is missing"
        raise UserError(f"{problem}: name a folder of images, or of one folder of images per class")
    root = root / split if split and (root / split).is_dir() else root
    folders, others = [], []
    for path in _list(root):
        is_class = not is_hidden(path.name) and path.is_dir()
        (folders if is_class else others).append(path)
    loose, rest = _images(others)
    broken = [path for path in rest if not is_hidden(path.name) and not path.exists()]
    if broken:  # It may be a class, without which the labels shift.
        raise UserError(f"{broken[0]} is a link to what doesn't exist: repair or remove it")
    asked = split if root == epath.Path(dir) else ""
    found = {path.name: _images(_walk(path)) for path in folders}
    files = tuple((path, label) for label, name in enumerate(found) for path in found[name][0])
    if files:
        _check_no_splits(root, folders, asked, section)
        _check_classes(root, found, section)
        rest += [path for _, others in found.values() for path in others]
        if loose:
            say(f"warning: {len(loose)} images next to the class folders of {root} are ignored")
    else:
        found, files, rest = {}, tuple((path, 0) for path in loose), rest + folders
        if files and root != epath.Path(dir):
            _say_what_is_beside(root, split, section)
    if not files:
        only = f", only {describe_files(rest)}" if rest else ""
        raise UserError(
            f"{root} has neither images nor class folders with images "
            f"({', '.join(IMAGE_SUFFIXES)}){only}: set {section}.dir to a folder that does"
        )
    if rest:
        say(f"warning: {describe_files(rest)} in {root} left out, such as {rest[0]}")
    return _FolderSource(_Files(files), None, 3, tuple(found))


def _check_no_splits(root: epath.Path, folders: list[epath.Path], split: str, section: str) -> None:
    """Refuse folders that may be splits: their images are in folders of their own.

    Args:
      split: the split that was asked for, and that is none of the folders; "" if none was.
    """
    names = [path.name for path in folders]
    if not (split or all(name.lower() in SPLITS for name in names)):
        return
    if not any(is_image(path.name) for folder in folders for path in _list(folder)):
        listed = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        raise UserError(
            f"{root} has neither images nor class folders with images, only folders of folders, "
            f"such as splits: {listed}; name one of them in {section}.split, or leave that empty "
            f"if they are the classes"
        )


def _say_what_is_beside(root: epath.Path, split: str, section: str) -> None:
    """Say which folders are left out, because a class may have the name of the split."""
    beside = [path.name for path in _list(root.parent) if path.is_dir() and path.name != root.name]
    beside = [name for name in beside if not is_hidden(name)]
    if beside:
        say(
            f"reads the images of {root}, which has no class folders, for {section}.split="
            f"{split!r}; not read: {', '.join(beside[:5])}{' …' if len(beside) > 5 else ''}"
        )


def _list(folder: epath.Path) -> list[epath.Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise UserError(f"{folder} can't be listed: {error}") from error


def _walk(folder: epath.Path) -> list[epath.Path]:
    """Return the files of a folder and of its folders, at any depth, without hidden folders."""
    found: list[epath.Path] = []
    for path in _list(folder):
        if is_image(path.name) or is_hidden(path.name) or not path.is_dir():
            found.append(path)
        else:
            found += _walk(path)
    return found


def _images(paths: list[epath.Path]) -> tuple[list[str], list[epath.Path]]:
    """Return the images among some paths, and the rest without what is hidden and no image."""
    images = [str(path) for path in paths if is_image(path.name)]
    rest = [
        path
        for path in paths
        if not is_image(path.name)
        and (not is_hidden(path.name) or path.name.lower().endswith(IMAGE_SUFFIXES))
    ]
    return images, rest


def _check_classes(
    root: epath.Path, found: dict[str, tuple[list[str], list[epath.Path]]], section: str
) -> None:
    """Refuse class folders without images, which would shift the labels; warn of similar names.

    Args:
      found: the images and the other files of each class.
    """
    empty = [
        f"{name!r} ({f'only {describe_files(rest)}' if rest else 'empty'})"
        for name, (images, rest) in found.items()
        if not images
    ]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise UserError(
            f"{root} has class folders without images: {', '.join(empty[:5])}{more}; add images "
            f"to them ({', '.join(IMAGE_SUFFIXES)}) or remove them; if the folders are splits, "
            f"name one in {section}.split"
        )
    by_key: dict[str, list[str]] = {}
    for name in found:
        by_key.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    for names in by_key.values():
        if len(names) > 1:
            say(f"warning: {root} has class folders with similar names: {', '.join(names)}")
