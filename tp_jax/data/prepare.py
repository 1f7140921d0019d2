"""Images into latents on disk: every shard by itself, so that a kill costs at most one a host."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import grain
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.data.pipeline import check_text
from tp_jax.data.shards import read_shard, write_header, write_shard
from tp_jax.data.source import Source
from tp_jax.data.sources import open_named
from tp_jax.data.sources.captions import CaptionSource, EncodedText, check_captions, encode_captions
from tp_jax.data.sources.latents import PLAN, LatentsPlan, plan_from_json
from tp_jax.data.transforms import UNREADABLE, decode_pixels
from tp_jax.files.atomic import write_json
from tp_jax.files.differences import first_difference
from tp_jax.files.folders import can_resume, make_folder
from tp_jax.latents.codec import Codec, load_codec
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.parallel.mesh import DATA_PARALLEL, create_mesh, padded_batch_size
from tp_jax.parallel.processes import run_on_first
from tp_jax.parallel.sharding import batch_sharding
from tp_jax.text import TextEncoder, load_encoder


def prepare(config: ConfigDict, folder: epath.Path) -> None:
    """Writes `config.prepare.source` as latents into a folder, or goes on where that was killed.

    Captions are written beside the latents, as `config.text` encodes them. Every process makes
    every n-th shard on its own devices. The bytes don't depend on the batch size, the devices or
    the processes.

    Raises:
      UserError: config, source, autoencoder, text encoder or folder don't fit, or a caption is
        too long (nothing has been written then), or an image can't be read (finished shards stay).
    """
    built = config_lib.build(config)
    if config.autoencoder.pool or not config.autoencoder.path:
        raise UserError(
            "config.autoencoder.path is empty: name the folder that tp_jax.convert "
            "--kind=sd-vae wrote (pooled latents are made in training, without preparing)"
        )
    mesh = create_mesh(DATA_PARALLEL, jax.local_devices())
    # Of a folder, as was just checked.
    codec = cast(Codec, load_codec(config.autoencoder, mesh))
    fields = config.prepare
    source = open_named("config.prepare", fields.source, fields.dir, fields.split)
    _check_gives(source, config)
    captioned = source if isinstance(source, CaptionSource) else None
    encoder = load_encoder(config.text) if captioned else None
    plan = make_plan(config, source, codec, encoder)
    chosen = choose(source, plan)
    if (built.model.image_size, built.model.channels) != (plan.latent_size, codec.space.channels):
        raise UserError(
            f"config.model.channels={built.model.channels}, but the autoencoder's latents have "
            f"{codec.space.channels}"
        )
    null = None
    if captioned and encoder:
        # By every process, so that all refuse alike, before hours of encoding.
        _check_known(captioned, plan, encoder, chosen)
        (null,) = encode_captions(encoder, [("the empty prompt", [""])])
    start(folder, plan)

    mine = range(jax.process_index(), plan.shards, jax.process_count())
    todo = [shard for shard in mine if read_shard(folder, plan, shard) is None]
    images = sum(len(plan.shard_range(shard)) for shard in todo)
    say(
        f"{fields.source}: {plan.records:,} images into {plan.shards} shards of latents in "
        f"{folder}; {len(mine) - len(todo)} of {len(mine)} shards of this process are there"
    )
    with progress_bar(images, "preparing") as bar:
        records = encoded(config, source, plan, codec, encoder, chosen, todo)
        for shard in todo:
            write_shard(folder, plan, shard, records, bar)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all shards are written")
    if jax.process_index() == 0:
        header = write_header(folder, plan, null)
        skipped = f", {len(header.skipped)} skipped" if header.skipped else ""
        say(f"done: {sum(header.counts):,} images{skipped}; config.data.dir={folder}")
        for name in header.skipped:
            say(f"skipped: {name}")


def _check_gives(source: Source, config: ConfigDict) -> None:
    """Refuses labels for a model that takes text, the reverse, and what isn't on disk."""
    kind, name = config.model.kind, f"config.prepare.source={config.prepare.source!r}"
    if source.gives == "caption" and not isinstance(source, CaptionSource):
        raise UserError(f"{name} is drawn as it is asked for: train on it as it is")
    takes_text = config_lib.model_config(config).condition_kind == "text"
    taken, other = ("caption", "label") if takes_text else ("label", "caption")
    if source.gives == other:
        raise UserError(f"{name} has {other}s, but a {kind} model takes {taken}s: choose another")
    if source.gives == "label" and config.prepare.captions:
        raise UserError(
            f"config.prepare.captions={config.prepare.captions}, but {name} has labels: set 0"
        )


def make_plan(
    config: ConfigDict, source: Source, codec: Codec, encoder: TextEncoder | None = None
) -> LatentsPlan:
    """What decides every byte of the shards.

    Raises:
      UserError: the source doesn't hold colour images, or not as many as are to be chosen; or the
        model doesn't take what the encoder gives.
    """
    fields, count = config.prepare, len(source.records)
    if fields.num > count:
        raise UserError(
            f"config.prepare.num={fields.num}, but {fields.source} has {count} images: choose "
            f"fewer, or 0 for all"
        )
    if encoder:
        check_text(encoder.space, config_lib.model_config(config), "config.text.encoder")
    if not source.pixels or source.channels != 3:
        raise UserError(f"config.prepare.source={fields.source!r} doesn't hold colour images")
    return LatentsPlan(
        source=fields.source,
        split=fields.split,
        records=fields.num or count,
        class_names=source.class_names,
        pixel_size=config.model.image_size * codec.space.factor,
        autoencoder=codec.space,
        dtype=config.autoencoder.dtype,
        tile=config.autoencoder.tile,
        records_per_shard=fields.records_per_shard,
        skip_corrupt=fields.skip_corrupt,
        num=fields.num,
        seed=config.seed if fields.num else 0,
        text=encoder.space if encoder else None,
        captions=fields.captions,
    )


def choose(source: Source, plan: LatentsPlan) -> np.ndarray:
    """Indices of the images that are prepared, ascending."""
    count = len(source.records)
    if not plan.num:
        return np.arange(count)
    # The old generator, because its numbers are the same in every version of NumPy.
    rng = np.random.RandomState(np.random.MT19937(plan.seed))
    return np.sort(rng.permutation(count)[: plan.num])


def _kept(plan: LatentsPlan, captions: Sequence[str]) -> Sequence[str]:
    return captions[: plan.captions] if plan.captions else captions


def _check_known(
    source: CaptionSource, plan: LatentsPlan, encoder: TextEncoder, chosen: np.ndarray
) -> None:
    """Every caption that can be had without reading images."""
    for index in chosen:
        captions = _kept(plan, source.known_captions(index))
        check_captions(encoder, captions, source.record_name(index))


def start(folder: epath.Path, plan: LatentsPlan) -> None:
    """Writes the plan, or checks it against the one that is being carried out.

    Raises:
      UserError: the folder is foreign, or was begun with another plan.
    """
    run_on_first(lambda: _start(folder, plan))


def _start(folder: epath.Path, plan: LatentsPlan) -> None:
    path = folder / PLAN
    if not can_resume(folder, path, str(folder), "tp_jax.prepare"):
        make_folder(folder, str(folder))
        write_json(path, plan.to_json())
        return
    try:
        old = plan_from_json(json.loads(path.read_text()))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): use a new folder") from error
    changed = first_difference(vars(old), vars(plan))
    if changed:
        raise UserError(
            f"{folder} was begun with other settings: {changed.name} was {str(changed.old)[:200]}, "
            f"now {str(changed.new)[:200]}; go on as it was begun, or use a new folder"
        )


def encoded(
    config: ConfigDict,
    source: Source,
    plan: LatentsPlan,
    codec: Codec,
    encoder: TextEncoder | None,
    chosen: np.ndarray,
    shards: Sequence[int],
) -> Iterator[bytes | str]:
    """The records of these shards in order; in place of an image that can't be read, why.

    Raises:
      UserError: an image can't be read and none may be skipped, or a caption can't be encoded.
    """
    indices = [int(index) for shard in shards for index in chosen[plan.shard_range(shard)]]
    batch_size = padded_batch_size(codec.mesh, config.prepare.batch_size)
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
        moments = _flips(codec, images)
        following = batch, _conditions(plan, encoder, batch), moments
        if waiting:
            yield from _records(plan, *waiting)
        waiting = following
    if waiting:
        yield from _records(plan, *waiting)


@dataclasses.dataclass(frozen=True)
class _ReadPixels(grain.transforms.Map):
    """Index -> {"image": uint8 [S, S, 3], "name", "error", and "label" or "captions"}.

    What can't be read is black, and has neither.
    """

    source: Source
    size: int

    # Grain's own method says that it returns nothing.
    def map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int
    ) -> dict[str, Any]:
        name = self.source.record_name(index)
        try:
            record = self.source.records[index]
            image = decode_pixels(record["image"], self.size, 3)
            text = self.source.gives == "caption"
            rest = {"captions": record["captions"]} if text else {"label": int(record["label"])}
            return {"image": image, "name": name, "error": "", **rest}
        except UNREADABLE as error:
            black = np.zeros((self.size, self.size, 3), np.uint8)
            return {"image": black, "name": name, "error": f"{name} can't be read: {error!r}"}


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


def _conditions(
    plan: LatentsPlan, encoder: TextEncoder | None, batch: Sequence[dict[str, Any]]
) -> list[int | EncodedText | None]:
    """Label or encoded captions of each element; None where it can't be read."""
    if encoder is None:
        return [element.get("label") for element in batch]
    readable = [element for element in batch if not element["error"]]
    captions = [(element["name"], _kept(plan, element["captions"])) for element in readable]
    found = iter(encode_captions(encoder, captions))
    return [None if element["error"] else next(found) for element in batch]


def _records(
    plan: LatentsPlan,
    batch: Sequence[dict[str, Any]],
    conditions: Sequence[int | EncodedText | None],
    moments: Sequence[tuple[jax.Array, jax.Array]],
) -> Iterator[bytes | str]:
    # [mirrored, mean and std, B, h, w, c] -> [B, mirrored, mean and std, h, w, c]
    rows = np.moveaxis(np.array(jax.device_get(moments), np.float16), 2, 0)
    for element, condition, row in zip(batch, conditions, rows, strict=False):
        if element["error"] and not plan.skip_corrupt:
            raise UserError(
                f"{element['error']}; mend it and start again, which goes on, or prepare a new "
                f"folder with --config.prepare.skip_corrupt=true"
            )
        yield element["error"] if condition is None else plan.encode(condition, row)
