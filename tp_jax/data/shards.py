"""Write a folder of prepared latents: shards, a JSON file for each shard, and the header."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tqdm import tqdm

from tp_jax.data.sources.captions import EncodedText
from tp_jax.data.sources.latents import (
    HEADER,
    NULL_TEXT,
    LatentsHeader,
    LatentsPlan,
    pack_null_text,
)
from tp_jax.files.atomic import replacing, write_bytes, write_errors, write_json
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError

# What ArrayRecord raises for a full disk and the like.
_WRITER_ERRORS = (RuntimeError,)


@dataclasses.dataclass(frozen=True)
class ShardStatistics:
    """Statistics of a finished shard, written as JSON after the shard is complete.

    Attributes:
      count: number of images in the shard.
      bytes: size of the file.
      skipped: images that couldn't be read, each with the reason.
      sum, sum_of_squares: sums of the scaled latents over images and positions, [c] float64.
    """

    count: int
    bytes: int
    skipped: tuple[str, ...]
    sum: tuple[float, ...]
    sum_of_squares: tuple[float, ...]


def write_shard(
    folder: epath.Path,
    plan: LatentsPlan,
    shard: int,
    records: Iterator[bytes | str],
    bar: tqdm,
) -> None:
    """Write one shard from the next records, and then its statistics.

    Args:
      records: a record, or the reason why an image couldn't be read, for each image.
      bar: advanced by one for each image.

    Raises:
      WriteError: the shard can't be written.
    """
    space, skipped, count = plan.autoencoder, [], 0
    total, squares = np.zeros(space.channels), np.zeros(space.channels)
    target = folder / plan.shard_name(shard)
    with replacing(target) as temporary:
        with write_errors(target, _WRITER_ERRORS):
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for _ in plan.shard_range(shard):
            record = next(records)
            bar.update()
            if isinstance(record, str):
                skipped.append(record)
                continue
            with write_errors(target, _WRITER_ERRORS):
                writer.write(record)
            count += 1
            mean, std = plan.decode(record)[1].astype(np.float64).transpose(1, 0, 2, 3, 4)
            scaled = (mean - space.shift) * space.scale
            total += scaled.sum((0, 1, 2))
            squares += (scaled**2 + (std * space.scale) ** 2).sum((0, 1, 2))
        with write_errors(target, _WRITER_ERRORS):
            writer.close()
        size = temporary.stat().length
    statistics = ShardStatistics(count, size, tuple(skipped), tuple(total), tuple(squares))
    write_json(_statistics_path(folder, plan, shard), dataclasses.asdict(statistics))


def _statistics_path(folder: epath.Path, plan: LatentsPlan, shard: int) -> epath.Path:
    return folder / f"{plan.shard_name(shard)}.json"


def read_statistics(folder: epath.Path, plan: LatentsPlan, shard: int) -> ShardStatistics | None:
    """Read the statistics of a shard; None if it is missing, incomplete or not finite."""
    file, statistics = folder / plan.shard_name(shard), _statistics_path(folder, plan, shard)
    if not file.exists() or not statistics.exists():
        return None
    try:
        found = ShardStatistics(**read_json(statistics))
        finite = np.isfinite([*found.sum, *found.sum_of_squares]).all()
    except (UserError, TypeError):
        return None
    return found if finite and file.stat().length == found.bytes else None


def _write_null_text(folder: epath.Path, null: EncodedText) -> str:
    """Write the encoded empty prompt, and return the file's SHA-256."""
    content = pack_null_text(null)
    write_bytes(folder / NULL_TEXT, content)
    return hashlib.sha256(content).hexdigest()


def write_header(
    folder: epath.Path, plan: LatentsPlan, null: EncodedText | None = None
) -> LatentsHeader:
    """Write the header, which marks the folder as finished.

    Args:
      null: the encoded empty prompt, which is written first; None with labels.

    Raises:
      UserError: a shard is missing, or no image could be read.
    """
    found = [read_statistics(folder, plan, shard) for shard in range(plan.shards)]
    shards = [shard for shard in found if shard is not None]
    if None in found:
        raise UserError(
            f"{folder} has no complete {plan.shard_name(found.index(None))}: give all hosts the "
            f"same folder, and run the same command again"
        )
    if not any(shard.count for shard in shards):
        raise UserError(
            f"none of the {plan.records} images could be read, the first: {shards[0].skipped[0]}"
        )
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
        null_text=_write_null_text(folder, null) if null else "",
    )
    write_json(folder / HEADER, header.to_json())
    return header
