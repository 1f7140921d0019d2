"""Prepared latents: moments of an autoencoder's posterior in ArrayRecord shards, with a header.

Axes: h×w latents of c channels, n captions of an image, L text tokens. All numbers are
little-endian.

With labels, a record is the label (int32), then the moments (float16) of the image and of its
mirror image, [2 (original, mirrored), 2 (mean, std), h, w, c]. With captions, a record is the
moments, then n (int32), then for each caption its text [L, width] and its pooled text
[pooled_width] (float16). The encoded empty prompt is stored once in the folder.
"""

import dataclasses
import hashlib
import io
import zipfile
from typing import Any, cast

import grain
import numpy as np
from etils import epath

from tp_jax.data.source import Decode, Source
from tp_jax.data.sources.captions import EncodedText
from tp_jax.data.transforms import Records
from tp_jax.files.differences import first_difference
from tp_jax.files.jsonl import read_json
from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError
from tp_jax.pictures.decoding import BACKGROUND
from tp_jax.text import TextSpace

HEADER, PLAN, NULL_TEXT = "header.json", "plan.json", "null_text.npz"
FORMAT, CROP = 1, "adm-centre"
# Fields of the plan that older folders don't have.
ADDED_LATER = ("num", "seed", "text", "captions", "background")


@dataclasses.dataclass(frozen=True)
class LatentsPlan:
    """All settings that determine the content of the shards, byte for byte.

    Attributes:
      source, split: the images that are prepared.
      records: number of images.
      class_names: names of the labels.
      pixel_size: side in pixels of the cropped images.
      autoencoder: the latent space.
      dtype, tile: how the autoencoder computes, as in `config.autoencoder`.
      records_per_shard: number of images in each shard but the last.
      skip_corrupt: whether images that can't be read are left out.
      crop: how images are cropped.
      format: version of the format of records.
      num, seed: number of images in a random subset and its seed; 0 means all images.
      text: the text space of the captions; None with labels.
      captions: maximum number of captions of an image; 0 keeps all.
      background: the colour behind transparent pixels.
    """

    source: str
    split: str
    records: int
    class_names: tuple[str, ...]
    pixel_size: int
    autoencoder: LatentSpace
    dtype: str
    tile: int
    records_per_shard: int
    skip_corrupt: bool
    crop: str = CROP
    format: int = FORMAT
    num: int = 0
    seed: int = 0
    text: TextSpace | None = None
    captions: int = 0
    background: str = BACKGROUND

    @property
    def latent_size(self) -> int:
        """Side h of the latents."""
        return self.pixel_size // self.autoencoder.factor

    @property
    def moments_shape(self) -> tuple[int, ...]:
        """Shape of the moments of one record: [2 (original, mirrored), 2 (mean, std), h, w, c]."""
        side = self.latent_size
        return (2, 2, side, side, self.autoencoder.channels)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.records // self.records_per_shard)

    def shard_name(self, shard: int) -> str:
        """Return the file name of a shard; its statistics are in the same name plus `.json`."""
        return f"latents-{shard:05d}-of-{self.shards:05d}.arrayrecord"

    def shard_range(self, shard: int) -> range:
        """Return the positions, among the chosen images, of the images in a shard."""
        start = shard * self.records_per_shard
        return range(start, min(start + self.records_per_shard, self.records))

    def encode(self, condition: int | EncodedText, moments: np.ndarray) -> bytes:
        """Encode a record.

        Args:
          condition: the label or the encoded captions.
          moments: array with `moments_shape`.
        """
        first = moments.astype("<f2").tobytes()
        if self.text is None:
            return np.array(condition, "<i4").tobytes() + first
        encoded = cast(EncodedText, condition)
        rows = encoded.text.reshape(len(encoded.text), -1), encoded.pooled
        text = np.concatenate(rows, 1).astype("<f2")
        return first + np.array(len(text), "<i4").tobytes() + text.tobytes()

    def decode(self, record: bytes) -> tuple[int | EncodedText, np.ndarray]:
        """Decode a record to its label or captions and its float16 moments, without copying.

        Raises:
          ValueError: the record has the wrong size.
        """
        count = int(np.prod(self.moments_shape))
        row = self.text.tokens * self.text.width + self.text.pooled_width if self.text else 0
        # Byte offsets of the label or the number of captions, and of the moments.
        at, start = (2 * count, 0) if self.text else (0, 4)
        if len(record) < 4 + 2 * count:
            raise ValueError(f"{len(record)} bytes instead of {4 + 2 * count} or more")
        number = int(np.frombuffer(record, "<i4", 1, at)[0])
        wanted = 4 + 2 * (count + number * row)
        if len(record) != wanted:
            raise ValueError(f"{len(record)} bytes instead of {wanted}")
        moments = np.frombuffer(record, "<f2", count, start).reshape(self.moments_shape)
        if self.text is None:
            return number, moments
        rows = np.frombuffer(record, "<f2", offset=at + 4).reshape(number, row)
        text, pooled = np.split(rows, [row - self.text.pooled_width], 1)
        text = text.reshape(number, self.text.tokens, self.text.width)
        return EncodedText(text, pooled), moments

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON; fields in `ADDED_LATER` are left out if they have defaults."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in ADDED_LATER or value != getattr(LatentsPlan, name)
        }


@dataclasses.dataclass(frozen=True)
class LatentsHeader:
    """Description of finished latents: the plan and the result.

    Attributes:
      counts, sizes: number of images and bytes of each shard.
      skipped: images that couldn't be read, each with the reason.
      mean, std: statistics of the scaled latents, one value for each channel.
      null_text: SHA-256 of the file with the encoded empty prompt; "" with labels.
    """

    plan: LatentsPlan
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    skipped: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    null_text: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON; an empty `null_text` is left out."""
        fields = dataclasses.asdict(self) | {"plan": self.plan.to_json()}
        return {name: value for name, value in fields.items() if value != ""}


def plan_from_json(fields: dict[str, Any]) -> LatentsPlan:
    """Rebuild a plan from the JSON of `LatentsPlan.to_json`."""
    space = LatentSpace(**fields["autoencoder"])
    names = tuple(fields["class_names"])
    text = TextSpace(**fields["text"]) if fields.get("text") else None
    return LatentsPlan(**fields | {"autoencoder": space, "class_names": names, "text": text})


def read_header(folder: epath.Path) -> LatentsHeader:
    """Read a folder's header, and check the sizes of its shards.

    Raises:
      UserError: the folder doesn't exist, is unfinished or has another format, or a shard is
        missing or damaged.
    """
    path = folder / HEADER
    if not path.exists():
        unfinished = (folder / PLAN).exists()
        reason = "isn't finished: run the same tp_jax.prepare again" if unfinished else (
            f"has no {HEADER}: prepare it with python -m tp_jax.prepare"
        )  # fmt: skip
        raise UserError(f"the latents in {folder} can't be read: the folder {reason}")
    try:
        fields = read_json(path, {"plan": dict}, "prepare into a new folder")
        if fields["plan"]["format"] != FORMAT:
            raise UserError(
                f"{path} has format {fields['plan']['format']}, not {FORMAT}: prepare the latents "
                f"again into a new folder"
            )
        plan = plan_from_json(fields.pop("plan"))
        if plan.crop != CROP:
            raise UserError(
                f"{path}: the images were cropped as {plan.crop!r}, not {CROP!r}: prepare the "
                f"latents again into a new folder"
            )
        null_text = fields.pop("null_text", "")
        lists = {name: tuple(value) for name, value in fields.items()}
        header = LatentsHeader(plan, **lists, null_text=null_text)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): prepare into a new folder") from error
    for shard, size in enumerate(header.sizes):
        file = folder / plan.shard_name(shard)
        found = file.stat().length if file.exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise UserError(
                f"{file} {what}: run the same tp_jax.prepare again, which writes only that shard"
            )
    return header


def pack_null_text(encoded: EncodedText) -> bytes:
    """Return the content of the file of the encoded empty prompt, an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, text=encoded.text, pooled=encoded.pooled)
    return buffer.getvalue()


def _read_null_text(folder: epath.Path, header: LatentsHeader) -> dict[str, np.ndarray]:
    """Read the encoded empty prompt and check its hash.

    Returns:
      {"null_text": [L, width], "null_pooled": [pooled_width]} float16.
    """
    path = folder / NULL_TEXT
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != header.null_text:
        what = "is damaged" if content else "is missing"
        raise UserError(
            f"{path} {what}: run the same tp_jax.prepare again, which writes only that file"
        )
    try:
        with np.load(io.BytesIO(content)) as file:
            found = EncodedText(file["text"], file["pooled"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): prepare into a new folder") from error
    return {"null_text": found.text[0], "null_pooled": found.pooled[0]}


@dataclasses.dataclass(frozen=True)
class DecodeLatents:
    """Decode a record to {"x": scaled sample of the posterior [h, w, c] float32, "condition": …}.

    With labels, the condition is {"label": int32}. With captions, one caption is chosen at random,
    and the condition is {"text": [L, width], "pooled": [pooled_width], "null_text", "null_pooled"}
    float16.

    Attributes:
      flip: use the moments of the mirror image with probability one half.
      null: "null_text" and "null_pooled"; empty with labels.
    """

    plan: LatentsPlan
    flip: bool
    null: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __call__(self, record: bytes, rng: np.random.Generator) -> dict[str, Any]:
        """Sample from the posterior, shift and scale.

        Raises:
          ValueError: the record has the wrong size, or its latent isn't finite.
        """
        found, moments = self.plan.decode(record)
        mirrored = int(self.flip and rng.random() < 0.5)
        mean, std = moments[mirrored].astype(np.float32)
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise ValueError("its latent has NaN or infinity")
        z = mean + std * rng.standard_normal(mean.shape, np.float32)
        space = self.plan.autoencoder
        x = (z - np.float32(space.shift)) * np.float32(space.scale)
        if not isinstance(found, EncodedText):
            return {"x": x, "condition": {"label": np.int32(found)}}
        row = rng.integers(len(found.text))
        text, pooled = (np.array(part[row]) for part in (found.text, found.pooled))
        return {"x": x, "condition": {"text": text, "pooled": pooled, **self.null}}


@dataclasses.dataclass(frozen=True)
class LatentSource(Source):
    """Prepared latents with labels; `image_size` and `channels` are those of the latents."""

    header: LatentsHeader
    folder: str
    pixels = False
    remedy = "delete that shard and run the same tp_jax.prepare again"

    @property
    def identity(self) -> dict[str, Any]:
        """The header."""
        return self.header.to_json()

    def decoder(self, size: int, flip: bool) -> Decode:
        """Return the decoder; `size` is ignored, because latents aren't cropped."""
        return DecodeLatents(self.header.plan, flip)

    def record_name(self, index: int) -> str:
        """Return the shard's file and the record's index in it."""
        starts = np.cumsum([0, *self.header.counts])
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        name = self.header.plan.shard_name(shard)
        return f"{self.folder}/{name}, record {index - starts[shard]}"

    def check_space(self, space: LatentSpace) -> None:
        """Raise a UserError unless the latents were made with this autoencoder, scale and shift."""
        theirs = self.header.plan.autoencoder
        changed = first_difference(vars(theirs), vars(space))
        if changed:
            raise UserError(
                f"the latents in {self.folder} were made with another autoencoder: its "
                f"{changed.name} is {_short(changed.old)}, that of config.autoencoder.path is "
                f"{_short(changed.new)}; prepare the latents again, or name the autoencoder that "
                f"made them"
            )


@dataclasses.dataclass(frozen=True)
class CaptionedLatentSource(LatentSource):
    """Prepared latents with encoded captions.

    Attributes:
      null: the encoded empty prompt, "null_text" and "null_pooled".
    """

    null: dict[str, np.ndarray]
    condition_kind = "text"

    @property
    def text_space(self) -> TextSpace | None:
        """The text space of the encoder that made the captions."""
        return self.header.plan.text

    def decoder(self, size: int, flip: bool) -> Decode:
        """Return the decoder; `size` is ignored, because latents aren't cropped."""
        return DecodeLatents(self.header.plan, flip, self.null)


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) else str(value)


def _array_records(paths: list[str]) -> Records:
    # Cast, because Grain's class has no type annotations.
    return cast(Records, grain.sources.ArrayRecordDataSource(paths))


def _damaged_shard_error(paths: list[str], error: Exception) -> UserError:
    """Make an error that names the first shard that can't be opened."""
    for path in paths:
        try:
            len(_array_records([path]))
        except (RuntimeError, ValueError) as reason:
            return UserError(
                f"{path} is damaged: {reason}; delete it and run the same tp_jax.prepare again, "
                f"which writes only that shard"
            )
    return UserError(f"the shards can't be opened: {error}; prepare into a new folder")


def open_latents(dir: str, split: str = "", section: str = "config.data") -> LatentSource:
    """Open prepared latents.

    Args:
      dir: the folder that tp_jax.prepare wrote.
      split, section: ignored, because a folder holds one split and errors name the folder.

    Raises:
      UserError: the folder isn't complete, or a shard can't be opened.
    """
    header = read_header(epath.Path(dir))
    plan = header.plan
    paths = [str(epath.Path(dir) / plan.shard_name(i)) for i in range(plan.shards)]
    paths = [path for path, count in zip(paths, header.counts, strict=True) if count]
    try:
        records = _array_records(paths)
        count = len(records)
    except (RuntimeError, ValueError) as error:
        raise _damaged_shard_error(paths, error) from error
    if count != sum(header.counts):
        raise UserError(
            f"the shards in {dir} hold {count} images, but its {HEADER} lists "
            f"{sum(header.counts)}: prepare into a new folder"
        )
    fields = records, plan.latent_size, plan.autoencoder.channels, plan.class_names, header, dir
    if plan.text is None:
        return LatentSource(*fields)
    return CaptionedLatentSource(*fields, _read_null_text(epath.Path(dir), header))
