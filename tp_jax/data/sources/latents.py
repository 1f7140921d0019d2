"""Prepared latents: moments of an autoencoder's posterior in ArrayRecord shards, with a header.

A record is its label (int32) and then the moments (float16) of the image and of its mirror image,
[2 (mirrored), 2 (mean, std), h, w, c], little-endian; h×w latents of c channels. Where there are
captions it is the moments, the number n of captions (int32), and n times the text [L, width] and
the pooled text [pooled_width] (float16). Those of the empty prompt are once in the folder.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from typing import Any, cast

import grain
import numpy as np
from etils import epath

from tp_jax.data.source import Decode, Source
from tp_jax.data.sources.captions import EncodedText
from tp_jax.data.transforms import Records
from tp_jax.files.differences import first_difference
from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError
from tp_jax.text import TextSpace

HEADER, PLAN, NULL_TEXT = "header.json", "plan.json", "null_text.npz"
FORMAT = 1
# Fields of the plan that older folders lack.
LATER = ("num", "seed", "text", "captions")
CROP = "adm-centre"


@dataclasses.dataclass(frozen=True)
class LatentsPlan:
    """What decides every byte of the shards.

    Attributes:
      source, split, records: what was read, and how many images it has.
      class_names: of the labels.
      pixel_size: side of the cropped images.
      crop: how they were cropped.
      autoencoder: the space of the latents.
      dtype, tile: how the autoencoder computed.
      records_per_shard: images of a shard, but for the last.
      skip_corrupt: whether images that can't be read were left out.
      num, seed: how many images were chosen by which seed; 0 took all, whatever the seed.
      text: the space of the captions; None where there are labels.
      captions: how many of an image's captions were kept; 0 kept all.
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

    @property
    def latent_size(self) -> int:
        """Side h of the latents."""
        return self.pixel_size // self.autoencoder.factor

    @property
    def moments_shape(self) -> tuple[int, ...]:
        """Of one record: [mirrored, mean and std, h, w, c]."""
        side = self.latent_size
        return (2, 2, side, side, self.autoencoder.channels)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.records // self.records_per_shard)

    def shard_name(self, shard: int) -> str:
        """File name of a shard; its facts have the ending `.json` added."""
        return f"latents-{shard:05d}-of-{self.shards:05d}.arrayrecord"

    def shard_range(self, shard: int) -> range:
        """Places, among the chosen images, of those that go into a shard."""
        start = shard * self.records_per_shard
        return range(start, min(start + self.records_per_shard, self.records))

    def encode(self, condition: int | EncodedText, moments: np.ndarray) -> bytes:
        """One record, of a label or captions, and moments with `moments_shape`."""
        first = moments.astype("<f2").tobytes()
        if self.text is None:
            return np.array(condition, "<i4").tobytes() + first
        encoded = cast(EncodedText, condition)
        rows = encoded.text.reshape(len(encoded.text), -1), encoded.pooled
        text = np.concatenate(rows, 1).astype("<f2")
        return first + np.array(len(text), "<i4").tobytes() + text.tobytes()

    def decode(self, record: bytes) -> tuple[int | EncodedText, np.ndarray]:
        """Label or captions, and float16 moments of a record, copying nothing.

        Raises:
          ValueError: it has another size.
        """
        count = int(np.prod(self.moments_shape))
        row = self.text.tokens * self.text.width + self.text.pooled_width if self.text else 0
        # Where the number is, the label or that of captions, and where the moments begin.
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
        """Its fields, without those added later where they have their defaults."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in LATER or v != getattr(LatentsPlan, k)}


@dataclasses.dataclass(frozen=True)
class LatentsHeader:
    """The plan, and what came of it.

    Attributes:
      counts, sizes: images and bytes of each shard.
      skipped: images that couldn't be read, with the reason.
      mean, std: of the scaled latents, for each channel.
      null_text: SHA-256 of the file with the empty prompt's text; "" where there are labels.
    """

    plan: LatentsPlan
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    skipped: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    null_text: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `LatentsPlan.to_json`."""
        fields = dataclasses.asdict(self) | {"plan": self.plan.to_json()}
        return {name: value for name, value in fields.items() if value != ""}


def plan_from_json(fields: dict[str, Any]) -> LatentsPlan:
    """The plan that was written as JSON."""
    space = LatentSpace(**fields["autoencoder"])
    names = tuple(fields["class_names"])
    text = TextSpace(**fields["text"]) if fields.get("text") else None
    return LatentsPlan(**fields | {"autoencoder": space, "class_names": names, "text": text})


def read_header(folder: epath.Path) -> LatentsHeader:
    """Reads and checks a folder's header against the shards' sizes.

    Raises:
      UserError: the folder isn't there, is unfinished, of another format, or a shard is damaged.
    """
    path = folder / HEADER
    if not path.exists():
        unfinished = (folder / PLAN).exists()
        what = "isn't finished: run the same tp_jax.prepare again" if unfinished else (
            f"has no {HEADER}: prepare it with python -m tp_jax.prepare"
        )  # fmt: skip
        raise UserError(f"the latents in {folder} can't be read: it {what}")
    try:
        fields = json.loads(path.read_text())
        if fields["plan"]["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {fields['plan']['format']}, not {FORMAT}: prepare anew"
            )
        plan = plan_from_json(fields.pop("plan"))
        if plan.crop != CROP:
            raise UserError(f"{path} is of images cropped as {plan.crop!r}, not {CROP!r}")
        null_text = fields.pop("null_text", "")
        lists = {name: tuple(value) for name, value in fields.items()}
        header = LatentsHeader(plan, **lists, null_text=null_text)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): prepare into a new folder") from error
    for shard, size in enumerate(header.sizes):
        file = folder / plan.shard_name(shard)
        found = file.stat().length if file.exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise UserError(
                f"{file} {what}: run the same tp_jax.prepare again, which makes that shard alone"
            )
    return header


def pack_null_text(encoded: EncodedText) -> bytes:
    """The file of the empty prompt's text."""
    buffer = io.BytesIO()
    np.savez(buffer, text=encoded.text, pooled=encoded.pooled)
    return buffer.getvalue()


def _read_null_text(folder: epath.Path, header: LatentsHeader) -> dict[str, np.ndarray]:
    """{"null_text": [L, width], "null_pooled": [pooled_width]} float16, checked by its hash."""
    path = folder / NULL_TEXT
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != header.null_text:
        what = "is damaged" if content else "is missing"
        raise UserError(
            f"{path} {what}: run the same tp_jax.prepare again, which makes that file alone"
        )
    try:
        with np.load(io.BytesIO(content)) as file:
            found = EncodedText(file["text"], file["pooled"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): prepare into a new folder") from error
    return {"null_text": found.text[0], "null_pooled": found.pooled[0]}


@dataclasses.dataclass(frozen=True)
class DecodeLatents:
    """Record -> {"x": scaled draw of the posterior [h, w, c] float32, "condition": …}.

    The condition is {"label": int32}; or of one of the captions, drawn, {"text": [L, width],
    "pooled": [pooled_width], "null_text", "null_pooled"} float16.

    Attributes:
      flip: take the mirror image's moments with probability one half.
      null: the last two; empty where there are labels.
    """

    plan: LatentsPlan
    flip: bool
    null: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __call__(self, record: bytes, rng: np.random.Generator) -> dict[str, Any]:
        """Draws from the posterior, shifts and scales."""
        found, moments = self.plan.decode(record)
        mirrored = int(self.flip and rng.random() < 0.5)
        mean, std = moments[mirrored].astype(np.float32)
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
    """Latents on disk; `image_size` and `channels` are theirs."""

    header: LatentsHeader
    folder: str
    pixels = False
    remedy = "delete that shard and run the same tp_jax.prepare again"

    def decoder(self, size: int, flip: bool) -> Decode:
        """As for images, but nothing is cropped."""
        return DecodeLatents(self.header.plan, flip)

    def record_name(self, index: int) -> str:
        """The shard and the place in it."""
        starts = np.cumsum([0, *self.header.counts])
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        name = self.header.plan.shard_name(shard)
        return f"{self.folder}/{name}, record {index - starts[shard]}"

    def check_space(self, space: LatentSpace) -> None:
        """Raises a UserError if the latents aren't of this autoencoder, scale and shift."""
        theirs = self.header.plan.autoencoder
        changed = first_difference(vars(theirs), vars(space))
        if changed:
            raise UserError(
                f"the latents in {self.folder} were made by another autoencoder: {changed.name} "
                f"{_short(changed.old)}, that of config.autoencoder.path {_short(changed.new)}; "
                f"prepare anew, or name the autoencoder that made them"
            )


@dataclasses.dataclass(frozen=True)
class CaptionedLatentSource(LatentSource):
    """Latents with encoded captions.

    Attributes:
      null: of the empty prompt, as in the examples.
    """

    null: dict[str, np.ndarray]
    gives = "text"

    @property
    def text_space(self) -> TextSpace | None:
        """Of what encoded the captions."""
        return self.header.plan.text

    def decoder(self, size: int, flip: bool) -> Decode:
        """As for labels, with one of the captions, drawn."""
        return DecodeLatents(self.header.plan, flip, self.null)


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) else str(value)


def _array_records(paths: list[str]) -> Records:
    # Its `__len__` is of a class without annotations.
    return cast(Records, grain.sources.ArrayRecordDataSource(paths))


def _damaged(paths: list[str], error: Exception) -> UserError:
    """Names the first shard that can't be opened by itself."""
    for path in paths:
        try:
            len(_array_records([path]))
        except (RuntimeError, ValueError) as reason:
            return UserError(
                f"{path} is damaged: {reason}; delete it and run the same tp_jax.prepare again, "
                f"which makes that shard alone"
            )
    return UserError(f"the shards can't be opened: {error}; prepare into a new folder")


def open_latents(dir: str, split: str = "", section: str = "config.data") -> LatentSource:
    """Opens prepared latents.

    Args:
      split, section: ignored: a folder holds one split, and errors name it.

    Raises:
      UserError: as `read_header`, or a shard that can't be opened.
    """
    header = read_header(epath.Path(dir))
    plan = header.plan
    paths = [str(epath.Path(dir) / plan.shard_name(i)) for i in range(plan.shards)]
    paths = [path for path, count in zip(paths, header.counts, strict=True) if count]
    try:
        records = _array_records(paths)
        count = len(records)
    except (RuntimeError, ValueError) as error:
        raise _damaged(paths, error) from error
    if count != sum(header.counts):
        raise UserError(
            f"the shards in {dir} hold {count} images, its {HEADER} says {sum(header.counts)}: "
            f"prepare into a new folder"
        )
    fields = records, plan.latent_size, plan.autoencoder.channels, plan.class_names, header, dir
    if plan.text is None:
        return LatentSource(*fields)
    return CaptionedLatentSource(*fields, _read_null_text(epath.Path(dir), header))
