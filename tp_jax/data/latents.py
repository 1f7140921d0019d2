"""Prepared latents: moments of an autoencoder's posterior in ArrayRecord shards, with a header.

A record is its label (int32) and then the moments (float16) of the image and of its mirror image,
[2 (mirrored), 2 (mean, std), h, w, c], little-endian; h×w latents of c channels.
"""

import dataclasses
import json
from typing import Any

import grain
import numpy as np
from etils import epath

from tp_jax.data.source import Decode, LatentSpace, Source
from tp_jax.errors import UserError

HEADER, PLAN = "header.json", "plan.json"
FORMAT = 1
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
        """Indices of the source's images that go into a shard."""
        start = shard * self.records_per_shard
        return range(start, min(start + self.records_per_shard, self.records))

    def encode(self, label: int, moments: np.ndarray) -> bytes:
        """One record, of moments with `moments_shape`."""
        return np.array(label, "<i4").tobytes() + moments.astype("<f2").tobytes()

    def decode(self, record: bytes) -> tuple[int, np.ndarray]:
        """Label and float16 moments of a record.

        Raises:
          ValueError: it has another size.
        """
        wanted = 4 + 2 * int(np.prod(self.moments_shape))
        if len(record) != wanted:
            raise ValueError(f"{len(record)} bytes instead of {wanted}")
        moments = np.frombuffer(record, "<f2", offset=4).reshape(self.moments_shape)
        return int(np.frombuffer(record, "<i4", count=1)[0]), moments


@dataclasses.dataclass(frozen=True)
class LatentsHeader:
    """The plan, and what came of it.

    Attributes:
      counts, sizes: images and bytes of each shard.
      skipped: images that couldn't be read, with the reason.
      mean, std: of the scaled latents, for each channel.
    """

    plan: LatentsPlan
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    skipped: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def plan_from_json(fields: dict[str, Any]) -> LatentsPlan:
    """The plan that was written as JSON."""
    space = LatentSpace(**fields["autoencoder"])
    names = tuple(fields["class_names"])
    return LatentsPlan(**fields | {"autoencoder": space, "class_names": names})


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
        header = LatentsHeader(plan, **{name: tuple(value) for name, value in fields.items()})
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


@dataclasses.dataclass(frozen=True)
class DecodeLatents:
    """Record -> {"x": scaled draw of the posterior [h, w, c] float32, "condition": …}.

    Attributes:
      flip: take the mirror image's moments with probability one half.
    """

    plan: LatentsPlan
    flip: bool

    def __call__(self, record: bytes, rng: np.random.Generator) -> dict:
        """Draws from the posterior, shifts and scales."""
        label, moments = self.plan.decode(record)
        mirrored = int(self.flip and rng.random() < 0.5)
        mean, std = moments[mirrored].astype(np.float32)
        z = mean + std * rng.standard_normal(mean.shape, np.float32)
        space = self.plan.autoencoder
        x = (z - np.float32(space.shift)) * np.float32(space.scale)
        return {"x": x, "condition": {"label": np.int32(label)}}


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
        for field in dataclasses.fields(LatentSpace):
            found, wanted = getattr(theirs, field.name), getattr(space, field.name)
            if found != wanted:
                raise UserError(
                    f"the latents in {self.folder} were made by another autoencoder: {field.name} "
                    f"{_short(found)}, that of config.autoencoder.path {_short(wanted)}; prepare "
                    f"anew, or name the autoencoder that made them"
                )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) else str(value)


def _damaged(paths: list[str], error: Exception) -> UserError:
    """Names the first shard that can't be opened by itself."""
    for path in paths:
        try:
            len(grain.sources.ArrayRecordDataSource([path]))
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
        records = grain.sources.ArrayRecordDataSource(paths)
        count = len(records)
    except (RuntimeError, ValueError) as error:
        raise _damaged(paths, error) from error
    if count != sum(header.counts):
        raise UserError(
            f"the shards in {dir} hold {count} images, its {HEADER} says {sum(header.counts)}: "
            f"prepare into a new folder"
        )
    side, channels = plan.latent_size, plan.autoencoder.channels
    return LatentSource(records, side, channels, plan.class_names, header, dir)
