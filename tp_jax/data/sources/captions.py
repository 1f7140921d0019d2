"""Images with captions: MSCOCO's own layout, or any folder with a JSONL; and captions encoded.

n captions of an image, L text tokens.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.data.source import Decode, Source
from tp_jax.data.sources.folder import ENDINGS
from tp_jax.data.transforms import DecodeImage
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError
from tp_jax.text import TextEncoder

FILE_KEYS = ("file", "file_name")
CAPTION_KEYS = ("captions", "caption", "text")


class DecodeCaptioned(DecodeImage):
    """Record -> {"x": [S, S, C] float32 in [-1, 1], "condition": {"caption": str}}."""

    def condition(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """One of the record's captions, drawn."""
        captions = record["captions"]
        return {"caption": captions[rng.integers(len(captions))]}


class CaptionSource(Source):
    """Records {"image": encoded image bytes, "captions": (str, …)}, one or more captions each."""

    gives = "caption"

    def decoder(self, size: int, flip: bool) -> Decode:
        """As of `Source`. Flipping belies captions that say left and right."""
        return DecodeCaptioned(size, self.channels, flip)

    def known_captions(self, index: int) -> tuple[str, ...]:
        """Captions of a record that are at hand without reading it; none if they aren't."""
        return ()


@dataclasses.dataclass(frozen=True)
class _Files:
    paths: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = epath.Path(self.paths[index]).read_bytes()
        return {"image": image, "captions": self.captions[index]}


class _FileSource(CaptionSource):
    records: _Files

    def record_name(self, index: int) -> str:
        return self.records.paths[index]

    def known_captions(self, index: int) -> tuple[str, ...]:
        return self.records.captions[index]


def open_coco(dir: str, split: str, section: str) -> CaptionSource:
    """Opens `dir`/annotations/captions_`split`.json and the images in `dir`/`split`/.

    Images go in the order of their ids, and so do the captions of an image.

    Args:
      split: as train2017.
      section: of the config, for errors.

    Raises:
      UserError: something isn't there or is damaged, or images and captions don't match.
    """
    root = _root(dir, section)
    path, images = root / "annotations" / f"captions_{split}.json", root / split
    for wanted in (path, images):
        if not wanted.exists():
            raise UserError(
                f"{wanted} isn't there: in MSCOCO's layout {section}.dir holds "
                f"annotations/captions_SPLIT.json and the images in SPLIT/; {section}.split is "
                f"{split!r}"
            )
    content = _parse(read_text(path), str(path))
    try:
        names = {
            int(image["id"]): str(pathlib.PurePosixPath(image["file_name"]))
            for image in content["images"]
        }
        notes = [(int(a["image_id"]), int(a["id"]), a["caption"]) for a in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} isn't laid out as MSCOCO's captions ({error!r}): fetch the official file"
        ) from error
    captions: dict[str, tuple[str, ...]] = {names[id]: () for id in sorted(names)}
    strays = [(image, note) for image, note, _ in notes if image not in names]
    if strays:
        raise UserError(
            f"{path}: {len(strays)} captions are of no image in it, the first is annotation "
            f"{strays[0][1]} of image {strays[0][0]}: delete them, or fetch the official file"
        )
    for image, note, caption in sorted(notes, key=lambda note: note[:2]):
        captions[names[image]] += _checked([caption], f"{path}, annotation {note}")
    return _matched(path, images, captions, everything=True)


def open_captions(dir: str, split: str, section: str) -> CaptionSource:
    """Opens a folder of images with a JSONL of their captions.

    That is the first there is of `dir`/`split`.jsonl, `dir`/captions.jsonl, `dir`/metadata.jsonl
    and `dir`/`split`/metadata.jsonl. A line is {"file": "a.jpg", "caption": "…"}; files are named
    from the JSONL's own folder, and "captions": […] gives several, as do several lines. The keys
    "file_name" and "text" mean the same. Images go in the order of the lines.

    Args:
      section: of the config, for errors.

    Raises:
      UserError: something isn't there or is damaged, or images and captions don't match.
    """
    root = _root(dir, section)
    places = [root / "captions.jsonl", root / "metadata.jsonl"]
    if split:
        places = [root / f"{split}.jsonl", *places, root / split / "metadata.jsonl"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        listed = ", ".join(str(place.relative_to(root)) for place in places)
        raise UserError(f'{root} has none of {listed}: write lines {{"file": …, "caption": …}}')
    captions: dict[str, tuple[str, ...]] = {}
    # Not splitlines, which also cuts at rarer characters that captions may hold.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            name, found = _entry(_parse(line, where), where)
            captions[name] = captions.get(name, ()) + found
    # Beside other lists, images that this one doesn't name are theirs.
    alone = len(list(path.parent.glob("*.jsonl"))) == 1
    return _matched(path, path.parent, captions, everything=alone)


def _root(dir: str, section: str) -> epath.Path:
    if not dir or not epath.Path(dir).is_dir():
        raise UserError(f"{section}.dir={dir!r} isn't there: name a folder of images with captions")
    return epath.Path(dir)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is damaged JSON: {error}; mend it") from error


def _entry(entry: Any, where: str) -> tuple[str, tuple[str, ...]]:
    """File and captions of one line."""
    fields = entry if isinstance(entry, dict) else {}
    name = next((fields[key] for key in FILE_KEYS if key in fields), None)
    found = next((fields[key] for key in CAPTION_KEYS if key in fields), [])
    if not isinstance(name, str) or not name:
        raise UserError(f'{where} names no image: write {{"file": "a.jpg", "caption": "…"}}')
    found = _checked(found if isinstance(found, list) else [found], where)
    if not found:
        raise UserError(f"{where}: {name} has no caption: add one, or delete the line")
    return str(pathlib.PurePosixPath(name)), found


def _checked(captions: Iterable[Any], where: str) -> tuple[str, ...]:
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(
                f"{where}: the caption {str(caption)[:40]!r} is empty or no text: write one, or "
                f"delete it"
            )
    return tuple(caption.strip() for caption in captions)


def _matched(
    path: epath.Path, folder: epath.Path, captions: dict[str, tuple[str, ...]], everything: bool
) -> CaptionSource:
    """The source of these captions, whose images are in a folder.

    Args:
      everything: whether every image there has to have a caption.
    """
    if not captions:
        raise UserError(f"{path} holds no captions: name another, or write some")
    parents = {pathlib.PurePosixPath(name).parent for name in captions}
    there = {
        str(parent / found.name)
        for parent in parents
        if (folder / parent).is_dir()
        for found in (folder / parent).iterdir()
    }
    absent = [name for name in captions if name not in there]
    if absent:
        raise UserError(
            f"{path} names {len(absent)} images that aren't in {folder}, the first {absent[0]}: "
            f"add the images, or delete their captions"
        )
    bare = [name for name, found in captions.items() if not found]
    if everything:
        images = {name for name in there if name.lower().endswith(ENDINGS)}
        bare += sorted(images - captions.keys())
    if bare:
        raise UserError(
            f"{len(bare)} images in {folder} have no caption in {path}, the first {bare[0]}: "
            f"write captions, or take the images away"
        )
    paths = tuple(str(folder / name) for name in captions)
    return _FileSource(_Files(paths, tuple(captions.values())), None, 3, ())


@dataclasses.dataclass(frozen=True)
class EncodedText:
    """Prompts as an encoder encodes them.

    Attributes:
      text: [n, L, width] float16.
      pooled: [n, pooled_width] float16.
    """

    text: np.ndarray
    pooled: np.ndarray


def check_captions(encoder: TextEncoder, captions: Sequence[str], name: str) -> None:
    """Raises a UserError, naming the record, if the encoder doesn't take a caption."""
    try:
        for caption in captions:
            encoder.check(caption)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def encode_captions(
    encoder: TextEncoder, records: Sequence[tuple[str, Sequence[str]]]
) -> list[EncodedText]:
    """Encodes the captions of all records at once.

    Args:
      records: (name, captions) of each.

    Raises:
      UserError: a caption that the encoder doesn't take, or numbers that float16 can't hold.
    """
    for name, captions in records:
        check_captions(encoder, captions, name)
    ends = np.cumsum([len(captions) for _, captions in records])
    flat = [caption for _, captions in records for caption in captions]
    if not flat:
        return []
    found = encoder.encode(flat)
    parts = zip(*(np.split(found[part], ends[:-1]) for part in ("text", "pooled")), strict=True)
    return [
        EncodedText(*(_halves(array, name) for array in arrays))
        for (name, _), arrays in zip(records, parts, strict=True)
    ]


def _halves(array: np.ndarray, name: str) -> np.ndarray:
    largest = np.abs(array).max(initial=0)
    # Not `>`, which isn't true of NaN.
    if not largest <= np.finfo(np.float16).max:
        raise UserError(
            f"{name}: the text encoder gives {largest} for a caption, which float16 can't hold: "
            f"check config.text, and its dtype"
        )
    return array.astype(np.float16)
