"""Images with captions, in MSCOCO's layout or in a folder with a JSONL file; encoding captions.

Axes: n captions of an image, L text tokens.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.data.source import Decode, Source
from tp_jax.data.sources.folder import is_hidden, is_image
from tp_jax.data.transforms import DecodeImage
from tp_jax.files.folders import describe_files
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.text import TextEncoder

FILE_KEYS = ("file", "file_name")
CAPTION_KEYS = ("captions", "caption", "text")


class DecodeCaptioned(DecodeImage):
    """Decode a record to {"x": [S, S, C] float32 in [-1, 1], "condition": {"caption": str}}."""

    def condition(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return one of the record's captions, chosen at random."""
        captions = record["captions"]
        return {"caption": captions[rng.integers(len(captions))]}


class CaptionSource(Source):
    """A source of records {"image": encoded image bytes, "captions": (str, …)}."""

    condition_kind = "caption"

    def decoder(self, size: int, flip: bool) -> Decode:
        """Return the decoder; `flip` makes captions that contain left or right wrong."""
        return DecodeCaptioned(size, self.channels, flip, self.background)

    def known_captions(self, index: int) -> tuple[str, ...]:
        """Return a record's captions if they are known without reading the record, else ()."""
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
    """Open `dir`/annotations/captions_`split`.json and the images in `dir`/`split`/.

    Images, and the captions of an image, are sorted by their ids.

    Args:
      split: name of the split, such as train2017.
      section: section of the config that names the source, for error messages.

    Raises:
      UserError: a file is missing or damaged, or images and captions don't match.
    """
    root = _root(dir, section)
    path, images = root / "annotations" / f"captions_{split}.json", root / split
    for wanted in (path, images):
        if not wanted.exists():
            raise UserError(
                f"{wanted} doesn't exist: {section}.dir must have MSCOCO's layout, "
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
            f"{path} doesn't have the format of MSCOCO's captions ({error!r}): download the "
            f"official file"
        ) from error
    captions: dict[str, tuple[str, ...]] = {names[id]: () for id in sorted(names)}
    strays = [(image, note) for image, note, _ in notes if image not in names]
    if strays:
        raise UserError(
            f"{path}: {len(strays)} captions refer to images that the file doesn't list, the first "
            f"is annotation {strays[0][1]} of image {strays[0][0]}: delete them, or download the "
            f"official file"
        )
    for image, note, caption in sorted(notes, key=lambda note: note[:2]):
        captions[names[image]] += _check_texts([caption], f"{path}, annotation {note}")
    return _match_images(path, images, captions, all_images=True)


def open_captions(dir: str, split: str, section: str) -> CaptionSource:
    """Open a folder of images with a JSONL file of captions.

    The JSONL file is the first that exists of `dir`/`split`.jsonl, `dir`/captions.jsonl,
    `dir`/metadata.jsonl and `dir`/`split`/metadata.jsonl. A line is {"file": "a.jpg", "caption":
    "…"}, with the file relative to the folder of the JSONL file. An image may have several
    captions, as a list under "captions" or on several lines. The keys "file_name" and "text" are
    accepted too. Images keep the order of the lines.

    Args:
      section: section of the config that names the source, for error messages.

    Raises:
      UserError: a file is missing or damaged, or images and captions don't match.
    """
    root = _root(dir, section)
    places = [root / "captions.jsonl", root / "metadata.jsonl"]
    if split:
        places = [root / f"{split}.jsonl", *places, root / split / "metadata.jsonl"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        listed = ", ".join(str(place.relative_to(root)) for place in places)
        raise UserError(
            f'{root} has none of {listed}: create one with lines {{"file": …, "caption": …}}'
        )
    captions: dict[str, tuple[str, ...]] = {}
    # Not splitlines, which also splits at Unicode separators that captions may contain.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            name, found = _parse_entry(_parse(line, where), where)
            captions[name] = captions.get(name, ()) + found
    # If the folder has other JSONL files, images without a caption here may belong to them.
    only_list = len(list(path.parent.glob("*.jsonl"))) == 1
    return _match_images(path, path.parent, captions, all_images=only_list)


def _root(dir: str, section: str) -> epath.Path:
    if not dir or not epath.Path(dir).is_dir():
        raise UserError(
            f"{section}.dir={dir!r} doesn't exist: name a folder of images with captions"
        )
    return epath.Path(dir)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is invalid JSON: {error}; correct it") from error


def _parse_entry(entry: Any, where: str) -> tuple[str, tuple[str, ...]]:
    """Return file name and captions of one line of a JSONL file."""
    fields = entry if isinstance(entry, dict) else {}
    name = next((fields[key] for key in FILE_KEYS if key in fields), None)
    found = next((fields[key] for key in CAPTION_KEYS if key in fields), [])
    if not isinstance(name, str) or not name:
        raise UserError(f'{where} names no image: it must be {{"file": "a.jpg", "caption": "…"}}')
    found = _check_texts(found if isinstance(found, list) else [found], where)
    if not found:
        raise UserError(f"{where}: {name} has no caption: add one, or delete the line")
    return str(pathlib.PurePosixPath(name)), found


def captions_of(value: Any) -> tuple[str, ...]:
    """Return the captions of a record, from a text or a list of texts, without empty ones.

    Raises:
      ValueError: there is none.
    """
    values = value if isinstance(value, list | tuple) else (value,)
    captions = tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
    if not captions:
        raise ValueError("it has no caption")
    return captions


def _check_texts(captions: Iterable[Any], where: str) -> tuple[str, ...]:
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(
                f"{where}: the caption {str(caption)[:40]!r} is empty or not a string: correct or "
                f"delete it"
            )
    return tuple(caption.strip() for caption in captions)


def _match_images(
    path: epath.Path, folder: epath.Path, captions: dict[str, tuple[str, ...]], all_images: bool
) -> CaptionSource:
    """Build the source after checking that images and captions match.

    Args:
      path: the file of captions, for error messages.
      folder: the folder of the images.
      captions: captions by the image's file name, relative to `folder`.
      all_images: whether every image in the folder must have a caption.
    """
    if not captions:
        raise UserError(f"{path} holds no captions: add some, or name another file")
    parents = {pathlib.PurePosixPath(name).parent for name in captions}
    present = {
        str(parent / found.name)
        for parent in parents
        if (folder / parent).is_dir()
        for found in (folder / parent).iterdir()
    }
    absent = [name for name in captions if name not in present]
    if absent:
        raise UserError(
            f"{path} names {len(absent)} images that aren't in {folder}, the first {absent[0]}: "
            f"add the images, or delete their captions"
        )
    uncaptioned = [name for name, found in captions.items() if not found]
    if all_images:
        images = {name for name in present if is_image(pathlib.PurePosixPath(name).name)}
        rest = [folder / name for name in sorted(present - images - captions.keys())]
        rest = [
            file for file in rest if not (file == path or is_hidden(file.name) or file.is_dir())
        ]
        if rest:
            say(f"warning: {describe_files(rest)} in {folder} left out, such as {rest[0]}")
        uncaptioned += sorted(images - captions.keys())
    if uncaptioned:
        raise UserError(
            f"{len(uncaptioned)} images in {folder} have no caption in {path}, the first "
            f"{uncaptioned[0]}: write captions, or remove the images"
        )
    paths = tuple(str(folder / name) for name in captions)
    return _FileSource(_Files(paths, tuple(captions.values())), None, 3, ())


@dataclasses.dataclass(frozen=True)
class EncodedText:
    """The encoded captions of one image.

    Attributes:
      text: [n, L, width] float16.
      pooled: [n, pooled_width] float16.
    """

    text: np.ndarray
    pooled: np.ndarray


def check_captions(encoder: TextEncoder, captions: Sequence[str], name: str) -> None:
    """Raise a UserError that names the record if the encoder doesn't accept a caption."""
    try:
        for caption in captions:
            encoder.check(caption)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def encode_captions(
    encoder: TextEncoder, records: Sequence[tuple[str, Sequence[str]]]
) -> list[EncodedText]:
    """Encode the captions of several records in one call of the encoder.

    Args:
      records: (name, captions) of each record; the name is for error messages.

    Raises:
      UserError: the encoder doesn't accept a caption, or its output exceeds the range of float16.
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
        EncodedText(*(_to_float16(array, name) for array in arrays))
        for (name, _), arrays in zip(records, parts, strict=True)
    ]


def _to_float16(array: np.ndarray, name: str) -> np.ndarray:
    largest = np.abs(array).max(initial=0)
    # `not <=` instead of `>`, so that NaN is refused too.
    if not largest <= np.finfo(np.float16).max:
        raise UserError(
            f"{name}: the text encoder returns {largest} for a caption, which float16 can't "
            f"represent: check config.text and config.text.dtype"
        )
    return array.astype(np.float16)
