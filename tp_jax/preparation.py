"""Images into latents on disk: every shard by itself, so that a kill costs at most one a host."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from tp_jax import config as config_lib
from tp_jax.codec import Codec, load_codec
from tp_jax.data.latents import HEADER, PLAN, LatentsHeader, LatentsPlan, plan_from_json
from tp_jax.data.pipeline import open_named
from tp_jax.data.source import Source
from tp_jax.data.transforms import UNREADABLE, decode_pixels
from tp_jax.errors import UserError
from tp_jax.output import progress_bar, say, write_json
from tp_jax.parallel.mesh import DATA_PARALLEL, create_mesh
from tp_jax.parallel.processes import first_says
from tp_jax.parallel.sharding import batch_sharding


@dataclasses.dataclass(frozen=True)
class Shard:
    """Facts of a finished shard, kept beside it as JSON; once they are there, it is whole.

    Attributes:
      count, bytes: images in it, and its size.
      skipped: images that couldn't be read, with the reason.
      sum, sum_of_squares: of the scaled latents over all their places, [c] float64.
    """

    count: int
    bytes: int
    skipped: tuple[str, ...]
    sum: tuple[float, ...]
    sum_of_squares: tuple[float, ...]


def prepare(config: ConfigDict, folder: epath.Path) -> None:
    """Writes `config.prepare.source` as latents into a folder, or goes on where that was killed.

    Every process makes every n-th shard on its own devices. The bytes don't depend on the batch
    size, the devices or the processes.

    Raises:
      UserError: config, source, autoencoder or folder don't fit (nothing has been written then),
        or an image can't be read (finished shards stay).
    """
    built = config_lib.build(config)
    if not config.autoencoder.path:
        raise UserError(
            "config.autoencoder.path is empty: name the folder that tp_jax.convert "
            "--kind=sd-vae wrote"
        )
    mesh = create_mesh(DATA_PARALLEL, jax.local_devices())
    codec = load_codec(config.autoencoder, mesh)
    fields = config.prepare
    source = open_named("config.prepare", fields.source, fields.dir, fields.split)
    plan = make_plan(config, source, codec)
    if (built.model.image_size, built.model.channels) != (plan.latent_size, codec.space.channels):
        raise UserError(
            f"config.model.channels={built.model.channels}, but the autoencoder's latents have "
            f"{codec.space.channels}"
        )
    start(folder, plan)

    mine = range(jax.process_index(), plan.shards, jax.process_count())
    todo = [shard for shard in mine if read_shard(folder, plan, shard) is None]
    images = sum(len(plan.shard_range(shard)) for shard in todo)
    say(
        f"{fields.source}: {plan.records:,} images into {plan.shards} shards of latents in "
        f"{folder}; {len(mine) - len(todo)} of {len(mine)} shards of this process are there"
    )
    with progress_bar(images, "preparing") as bar:
        records = encoded(config, source, plan, codec, todo)
        for shard in todo:
            write_shard(folder, plan, shard, records, bar)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all shards are written")
    if jax.process_index() == 0:
        header = write_header(folder, plan)
        skipped = f", {len(header.skipped)} skipped" if header.skipped else ""
        say(f"done: {sum(header.counts):,} images{skipped}; config.data.dir={folder}")
        for name in header.skipped:
            say(f"skipped: {name}")


def make_plan(config: ConfigDict, source: Source, codec: Codec) -> LatentsPlan:
    """What decides every byte of the shards.

    Raises:
      UserError: the source doesn't hold colour images.
    """
    fields = config.prepare
    if not source.pixels or source.channels != 3:
        raise UserError(f"config.prepare.source={fields.source!r} doesn't hold colour images")
    return LatentsPlan(
        source=fields.source,
        split=fields.split,
        records=len(source.records),
        class_names=source.class_names,
        pixel_size=config.model.image_size * codec.space.factor,
        autoencoder=codec.space,
        dtype=config.autoencoder.dtype,
        tile=config.autoencoder.tile,
        records_per_shard=fields.records_per_shard,
        skip_corrupt=fields.skip_corrupt,
    )


def start(folder: epath.Path, plan: LatentsPlan) -> None:
    """Writes the plan, or checks it against the one that is being carried out.

    Raises:
      UserError: the folder is foreign, or was begun with another plan.
    """
    refused = None
    if jax.process_index() == 0:
        try:
            _start(folder, plan)
        except UserError as error:
            refused = error
    # All wait here until the first process has written.
    if first_says(refused is not None):
        raise refused or UserError("the first process refused: see what it says")


def _start(folder: epath.Path, plan: LatentsPlan) -> None:
    path = folder / PLAN
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the latents")
    if path.exists():
        try:
            old = plan_from_json(json.loads(path.read_text()))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): use a new folder") from error
        for field in dataclasses.fields(plan):
            found, wanted = getattr(old, field.name), getattr(plan, field.name)
            if found != wanted:
                raise UserError(
                    f"{folder} was begun with other settings: {field.name} was "
                    f"{str(found)[:200]}, now {str(wanted)[:200]}; go on as it was begun, or use "
                    f"a new folder"
                )
        return
    # A kill at the very start leaves the plan under its temporary name.
    if folder.exists() and any(path.name != f"{PLAN}.tmp" for path in folder.iterdir()):
        raise UserError(f"{folder} holds files but no {PLAN}: use a new folder for the latents")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be made: {error}; name another") from error
    write_json(path, dataclasses.asdict(plan))


def encoded(
    config: ConfigDict, source: Source, plan: LatentsPlan, codec: Codec, shards: Sequence[int]
) -> Iterator[bytes | str]:
    """The records of these shards in order; in place of an image that can't be read, why.

    Raises:
      UserError: an image can't be read and none may be skipped.
    """
    indices = [index for shard in shards for index in plan.shard_range(shard)]
    devices = len(codec.mesh.devices.flat)
    batch_size = -(-config.prepare.batch_size // devices) * devices
    read = _ReadPixels(source, plan.pixel_size)
    dataset = grain.MapDataset.source(indices).map(read).to_iter_dataset()
    if config.data.workers:
        options = grain.MultiprocessingOptions(config.data.workers)
        dataset = dataset.mp_prefetch(options)
    batches = _in_batches(iter(dataset), batch_size)
    # One batch ahead, so that the devices work while records are written.
    waiting = None
    for batch in batches:
        images = np.zeros((batch_size, plan.pixel_size, plan.pixel_size, 3), np.uint8)
        for row, element in enumerate(batch):
            images[row] = element["image"]
        following = batch, _flips(codec, images)
        if waiting:
            yield from _records(plan, *waiting)
        waiting = following
    if waiting:
        yield from _records(plan, *waiting)


@dataclasses.dataclass(frozen=True)
class _ReadPixels(grain.transforms.Map):
    """Index -> {"image": uint8 [S, S, 3], "label", "error"}; what can't be read is black."""

    source: Source
    size: int

    def map(self, index: int) -> dict[str, Any]:
        try:
            record = self.source.records[index]
            image = decode_pixels(record["image"], self.size, 3)
            return {"image": image, "label": int(record["label"]), "error": ""}
        except UNREADABLE as error:
            reason = f"{self.source.record_name(index)} can't be read: {error!r}"
            black = np.zeros((self.size, self.size, 3), np.uint8)
            return {"image": black, "label": -1, "error": reason}


def _in_batches(elements: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for element in elements:
        batch.append(element)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _flips(codec: Codec, images: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
    """Starts computing mean and std of images, and of their mirror images."""
    sharding = batch_sharding(codec.mesh)
    scaled = images.astype(np.float32) / 127.5 - 1
    both = (scaled, np.ascontiguousarray(scaled[:, :, ::-1]))
    return [codec.moments(jax.device_put(side, sharding)) for side in both]


def _records(plan, batch, moments) -> Iterator[bytes | str]:
    # [mirrored, mean and std, B, h, w, c] -> [B, mirrored, mean and std, h, w, c]
    moments = np.moveaxis(np.array(jax.device_get(moments), np.float16), 2, 0)
    for element, row in zip(batch, moments, strict=False):
        if element["error"] and not plan.skip_corrupt:
            raise UserError(
                f"{element['error']}; mend it and start again, which goes on, or prepare a new "
                f"folder with --config.prepare.skip_corrupt=true"
            )
        yield element["error"] or plan.encode(element["label"], row)


def write_shard(
    folder: epath.Path,
    plan: LatentsPlan,
    shard: int,
    records: Iterator[bytes | str],
    bar: tqdm,
) -> None:
    """Writes one shard of the next records, and then its facts."""
    space, skipped, count = plan.autoencoder, [], 0
    total, squares = np.zeros(space.channels), np.zeros(space.channels)
    target = folder / plan.shard_name(shard)
    # What a kill leaves under this name is written over when the shard is made again.
    temporary = target.with_name(target.name + ".tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    for _ in plan.shard_range(shard):
        record = next(records)
        bar.update()
        if isinstance(record, str):
            skipped.append(record)
            continue
        writer.write(record)
        count += 1
        mean, std = plan.decode(record)[1].astype(np.float64).transpose(1, 0, 2, 3, 4)
        scaled = (mean - space.shift) * space.scale
        total += scaled.sum((0, 1, 2))
        squares += (scaled**2 + (std * space.scale) ** 2).sum((0, 1, 2))
    writer.close()
    size = temporary.stat().length
    temporary.replace(target)
    facts = Shard(count, size, tuple(skipped), tuple(total), tuple(squares))
    write_json(_facts_path(folder, plan, shard), dataclasses.asdict(facts))


def _facts_path(folder, plan, shard):
    return folder / f"{plan.shard_name(shard)}.json"


def read_shard(folder: epath.Path, plan: LatentsPlan, shard: int) -> Shard | None:
    """Facts of a shard, or None where it has to be made (again)."""
    file, facts = folder / plan.shard_name(shard), _facts_path(folder, plan, shard)
    if not file.exists() or not facts.exists():
        return None
    try:
        found = Shard(**json.loads(facts.read_text()))
    except (json.JSONDecodeError, TypeError):
        return None
    return found if file.stat().length == found.bytes else None


def write_header(folder: epath.Path, plan: LatentsPlan) -> LatentsHeader:
    """Writes the header.

    Raises:
      UserError: a shard isn't there, or no image could be read.
    """
    shards = [read_shard(folder, plan, shard) for shard in range(plan.shards)]
    if None in shards:
        raise UserError(
            f"{plan.shard_name(shards.index(None))} isn't in {folder}: give all hosts the same "
            f"folder, and run the same command again"
        )
    if not any(shard.count for shard in shards):
        raise UserError(f"none of the {plan.records} images could be read: {shards[0].skipped[0]}")
    places = 2 * plan.latent_size**2 * max(sum(shard.count for shard in shards), 1)
    mean = np.sum([shard.sum for shard in shards], 0) / places
    square = np.sum([shard.sum_of_squares for shard in shards], 0) / places
    header = LatentsHeader(
        plan,
        counts=tuple(shard.count for shard in shards),
        sizes=tuple(shard.bytes for shard in shards),
        skipped=tuple(reason for shard in shards for reason in shard.skipped),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist()),
    )
    write_json(folder / HEADER, dataclasses.asdict(header))
    return header
