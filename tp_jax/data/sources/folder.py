"""A folder of images, in one folder per class or without classes."""

import dataclasses
from typing import Any

from etils import epath

from tp_jax.data.source import Source
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


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


def open_folder(dir: str, split: str, section: str) -> Source:
    """Open a folder of images: `dir`/CLASS/…, or `dir`/… without classes.

    If `dir`/`split` is a folder, it is used instead of `dir`. Classes and files are sorted by name;
    label 0 is the first class. Images next to class folders are ignored, with a warning. A folder
    without class folders has no classes, and all its images have label 0.

    Args:
      section: section of the config that names the source, for error messages.

    Raises:
      UserError: the folder doesn't exist or holds no images.
    """
    root = epath.Path(dir)
    if not dir or not root.is_dir():
        problem = f"{section}.dir={dir!r} doesn't exist" if dir else f"{section}.dir is missing"
        raise UserError(f"{problem}: name a folder of images, or of one folder of images per class")
    root = root / split if split and (root / split).is_dir() else root
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    files = tuple(
        (path, label) for label, name in enumerate(classes) for path in _images(root / name)
    )
    loose = _images(root)
    if files and loose:
        say(f"warning: {len(loose)} images next to the class folders of {root} are ignored")
    if not files:
        classes, files = (), tuple((path, 0) for path in loose)
    if not files:
        raise UserError(
            f"{root} has neither images nor class folders with images "
            f"({', '.join(IMAGE_SUFFIXES)}): set {section}.dir to a folder that does"
        )
    return _FolderSource(_Files(files), None, 3, classes)


def _images(folder: epath.Path) -> list[str]:
    found = sorted(folder.iterdir())
    return [str(path) for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
