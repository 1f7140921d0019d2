"""A folder of class folders of images."""

import dataclasses
from typing import Any

from etils import epath

from tp_jax.data.source import Source
from tp_jax.messages.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


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
    """Opens `dir`/`split`/CLASS/…image, or `dir`/CLASS/…image where there is no such split.

    Args:
      section: of the config, for errors.

    Classes and files go in the order of their names; label 0 is the first class.

    Raises:
      UserError: there are no such folders, or no images in them.
    """
    root = epath.Path(dir)
    if not dir or not root.is_dir():
        raise UserError(f"{section}.dir={dir!r} isn't there: name a folder of class folders")
    root = root / split if split and (root / split).is_dir() else root
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    files = tuple(
        (str(path), label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in ENDINGS
    )
    if not files:
        raise UserError(f"{root} has no class folders with images ({', '.join(ENDINGS)})")
    return _FolderSource(_Files(files), None, 3, tuple(classes))
