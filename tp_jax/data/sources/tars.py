"""Tar shards as WebDataset writes them: images beside a .cls, .txt or .json with the same key.

A tar is read once from its start to its end, to find where its files begin; the places are kept in
an index beside the tars. Records are then read directly, in any order.
"""

import dataclasses
import io
import json
import tarfile
from typing import Any

import numpy as np
from etils import epath

from tp_jax.data.source import Source
from tp_jax.data.sources.captions import CAPTION_KEYS, CaptionSource, captions_of
from tp_jax.data.sources.folder import IMAGE_SUFFIXES, is_hidden
from tp_jax.files.atomic import Dispensable, replacing
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar

INDEX = ".tp_jax_tars.npz"
LABEL_KEYS = ("label", "cls")
# The ending of a condition -> its number in the index.
CONDITIONS = {".cls": 0, ".txt": 1, ".json": 2}
# What an index has of each record: the tar, and where the two files begin, with their bytes.
FIELDS = ("tar", "image", "image_bytes", "condition", "condition_bytes", "kind")


@dataclasses.dataclass(frozen=True)
class _Members:
    """The records of some tars.

    Attributes:
      tars: the paths.
      places: [N, 6] int64, `FIELDS` of each record.
      key: of the condition in a record: "label" or "captions".
    """

    tars: tuple[str, ...]
    places: np.ndarray
    key: str

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tar, image, image_bytes, condition, condition_bytes, kind = self.places[index].tolist()
        with epath.Path(self.tars[tar]).open("rb") as file:
            data = _read(file, image, image_bytes)
            text = _read(file, condition, condition_bytes).decode()
        return {"image": data, self.key: _parse(text, kind, self.key)}

    def name(self, index: int) -> str:
        """Return the tar of a record and the name of its image there."""
        tar, image = self.places[index, :2].tolist()
        with epath.Path(self.tars[tar]).open("rb") as file:
            return f"{self.tars[tar]}: {_name(file, image)}"


class _Labelled(Source):
    records: _Members

    def record_name(self, index: int) -> str:
        return self.records.name(index)


class _Captioned(CaptionSource):
    records: _Members

    def record_name(self, index: int) -> str:
        return self.records.name(index)


def open_tars(dir: str, split: str, section: str) -> Source:
    """Open a folder of tars: `dir`/`split`/*.tar, else `dir`/`split`*.tar, else `dir`/*.tar.

    Records are in the order of the names of the tars, and within a tar in that of the images.
    `.cls` and the key "label" or "cls" of a `.json` give labels; `.txt` and the key "caption",
    "captions" or "text" of a `.json` captions. The labels are numbers; the classes are named so.

    Args:
      section: section of the config that names the source, for error messages.

    Raises:
      UserError: there are no tars, one is compressed or damaged, or an image has no condition.
    """
    root = epath.Path(dir)
    if not dir or not root.is_dir():
        raise UserError(f"{section}.dir={dir!r} doesn't exist: name a folder of .tar files")
    folder = root / split if split and (root / split).is_dir() else root
    found = sorted(path for path in folder.glob("*.tar") if not is_hidden(path.name))
    named = [path for path in found if split and path.name.startswith(split)]
    tars = named if folder == root and named else found
    if not tars:
        raise UserError(f"{folder} has no .tar files: set {section}.dir to a folder that does")
    index = _indexed(folder, tars)
    key = "label" if index.classes else "captions"
    records = _Members(tuple(map(str, tars)), index.places, key)
    if not index.classes:
        return _Captioned(records, None, 3, ())
    return _Labelled(records, None, 3, tuple(map(str, range(index.classes))))


def _parse(text: str, kind: int, key: str) -> Any:
    """Return the label or the captions of the file of a condition.

    Raises:
      ValueError: it has none.
    """
    if kind == CONDITIONS[".json"]:
        fields = json.loads(text)
        keys = LABEL_KEYS if key == "label" else CAPTION_KEYS
        found = next((fields[name] for name in keys if name in fields), None)
    else:
        found = text.strip()
    if key == "label":
        label = int(found) if found not in (None, "") else -1
        if label < 0:
            raise ValueError(f"its label is {found!r}, and not a number from 0")
        return label
    return captions_of(found)


@dataclasses.dataclass(frozen=True)
class _Index:
    """What is known of some tars.

    Attributes:
      places: [N, 6] int64, `FIELDS` of each record.
      classes: number of classes; 0 if the records have captions.
    """

    places: np.ndarray
    classes: int


def _indexed(folder: epath.Path, tars: list[epath.Path]) -> _Index:
    """Return the index of the tars: the stored one if it is of these files, or else a new one."""
    state = np.array([f"{path.name} {path.stat().length}" for path in tars])
    path = folder / INDEX
    if path.exists():
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if np.array_equal(stored["state"], state):
                return _Index(stored["places"], int(stored["classes"]))
    found: list[tuple[int, ...]] = []
    with progress_bar(len(tars), "reading tars", "tar") as bar:
        for number, tar in enumerate(tars):
            found += _index_tar(tar, number)
            bar.update()
    places = np.array(found, np.int64)
    index = _Index(places, _count_classes(tars, places))
    with Dispensable().writing("an index of the tars"), replacing(path) as temporary:
        np.savez(buffer := io.BytesIO(), state=state, places=places, classes=index.classes)
        temporary.write_bytes(buffer.getvalue())
    return index


def _count_classes(tars: list[epath.Path], places: np.ndarray) -> int:
    """Return the number of classes by reading all labels; 0 if the first record has captions.

    Raises:
      UserError: a record has no label or caption.
    """
    key, largest = "", -1
    for number, tar in enumerate(tars):
        with tar.open("rb") as file:
            for _, image, _, start, size, kind in places[places[:, 0] == number].tolist():
                try:
                    text = _read(file, start, size).decode()
                    key = key or _key_of(text, kind)
                    found = _parse(text, kind, key)
                except ValueError as error:
                    name = _name(file, image)
                    raise UserError(f"{tar}: {name}: {error}: correct or remove it") from error
                largest = max(largest, found if key == "label" else -1)
    return largest + 1


def _key_of(text: str, kind: int) -> str:
    """Return whether the file of a condition has a label or captions."""
    if kind == CONDITIONS[".json"]:
        fields = json.loads(text)
        return "label" if any(name in fields for name in LABEL_KEYS) else "captions"
    return "label" if kind == CONDITIONS[".cls"] else "captions"


def _index_tar(path: epath.Path, number: int) -> list[tuple[int, ...]]:
    """Return `FIELDS` of every record of a tar."""
    files: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if member.isfile() and not is_hidden(name):
                    # As in WebDataset, the key ends at the first dot of the file's name.
                    stem, _, ending = name.partition(".")
                    key = member.name[: len(member.name) - len(name)] + stem
                    place = member.offset_data, member.size
                    files.setdefault(key, {})[f".{ending.lower()}"] = place
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{path} can't be read as a tar ({error}): it must not be compressed; write or "
            f"download it again"
        ) from error
    found = []
    for key, parts in files.items():
        image = next((ending for ending in parts if ending in IMAGE_SUFFIXES), None)
        if image is None:
            continue
        condition = next((ending for ending in CONDITIONS if ending in parts), None)
        if condition is None:
            raise UserError(
                f"{path}: {key}{image} has neither {', '.join(CONDITIONS)} beside it: add a label "
                f"or a caption, or remove it"
            )
        found.append((number, *parts[image], *parts[condition], CONDITIONS[condition]))
    if not found:
        raise UserError(f"{path} has no images ({', '.join(IMAGE_SUFFIXES)}): remove it")
    return found


def _read(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _name(file: Any, image: int) -> str:
    """Return the name of the file that begins at `image`: its header is the 512 bytes before."""
    return _read(file, image - 512, 100).rstrip(b"\0").decode(errors="replace")
