"""Writing a folder of prepared latents: shards, facts beside them, and the header at the end."""

import dataclasses
import hashlib
import json
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
from tp_jax.files.atomic import replacing, write_bytes, write_json
from tp_jax.messages.errors import UserError


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
    with replacing(target) as temporary:
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
    facts = Shard(count, size, tuple(skipped), tuple(total), tuple(squares))
    write_json(_facts_path(folder, plan, shard), dataclasses.asdict(facts))


def _facts_path(folder: epath.Path, plan: LatentsPlan, shard: int) -> epath.Path:
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


def _write_null_text(folder: epath.Path, null: EncodedText) -> str:
    """Writes what the empty prompt is encoded as; its SHA-256."""
    content = pack_null_text(null)
    write_bytes(folder / NULL_TEXT, content)
    return hashlib.sha256(content).hexdigest()


def write_header(
    folder: epath.Path, plan: LatentsPlan, null: EncodedText | None = None
) -> LatentsHeader:
    """Writes the empty prompt's text, where there are captions, and the header.

    Raises:
      UserError: a shard isn't there, or no image could be read.
    """
    found = [read_shard(folder, plan, shard) for shard in range(plan.shards)]
    shards = [shard for shard in found if shard is not None]
    if None in found:
        raise UserError(
            f"{plan.shard_name(found.index(None))} isn't in {folder}: give all hosts the same "
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
        null_text=_write_null_text(folder, null) if null else "",
    )
    write_json(folder / HEADER, header.to_json())
    return header
