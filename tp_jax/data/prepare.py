"""Encode images as latents on disk, shard by shard: a kill loses at most one shard per host."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

import grain
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.cli import signals
from tp_jax.data.pipeline import check_text
from tp_jax.data.shards import read_statistics, write_header, write_shard
from tp_jax.data.source import Source
from tp_jax.data.sources import open_named
from tp_jax.data.sources.captions import CaptionSource, EncodedText, check_captions, encode_captions
from tp_jax.data.sources.latents import PLAN, LatentsPlan, plan_from_json
from tp_jax.data.transforms import DECODE_ERRORS, decode_pixels, why_unreadable
from tp_jax.data.workers import EndsWithParent
from tp_jax.files.atomic import write_json
from tp_jax.files.differences import first_difference
from tp_jax.files.finite import check_finite
from tp_jax.files.folders import can_resume, make_folder
from tp_jax.files.jsonl import read_json
from tp_jax.files.outputs import output_folder
from tp_jax.latents.codec import Codec, load_codec
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import create_mesh, padded_batch_size
from tp_jax.parallel.processes import run_on_first
from tp_jax.parallel.sharding import batch_sharding
from tp_jax.text import TextEncoder, load_encoder
from tp_jax.workdir.lock import hold


def prepare(config: ConfigDict, folder: epath.Path | None = None) -> None:
    """Encode the images of `config.prepare.source` as latents in a folder, or resume doing so.

    Captions are encoded with `config.text` and stored with the latents. With n processes, each
    process writes every n-th shard, using its own devices. The written bytes don't depend on the
    batch size, the devices or the processes.

    Args:
      config: a whole config; `config.prepare` selects the images.
      folder: the folder for the latents; None is `config.data.dir`.

    Raises:
      UserError: config, source, autoencoder, text encoder and folder don't fit each other, or a
        caption is too long; then nothing has been written. Or an image can't be read; then finished
        shards are kept. Or a latent isn't finite in float16, or another process writes to the
        folder.
    """
    built = config_lib.build(config)
    if not (folder or config.data.dir):
        raise UserError("--workdir is missing: folder for the latents; config.data.dir by default")
    folder = folder or output_folder("config.data.dir", epath.Path(config.data.dir))
    if config.autoencoder.pool or not config.autoencoder.path:
        raise UserError(
            "config.autoencoder.path is empty: name a folder written by tp_jax.convert "
            "--kind=sd-vae (config.autoencoder.pool encodes during training and needs no prepare)"
        )
    mesh = create_mesh(DATA_PARALLEL, jax.local_devices())
    # Not Pooling or None, by the check above.
    codec = cast(Codec, load_codec(config.autoencoder, mesh))
    fields = config.prepare
    source = open_named("config.prepare", fields.source, fields.dir, fields.split, fields.columns)
    source = dataclasses.replace(source, background=config.data.background)
    _check_source(source, config)
    captioned = source if isinstance(source, CaptionSource) else None
    encoder = load_encoder(config.text) if captioned else None
    plan = make_plan(config, source, codec, encoder)
    chosen = choose_images(source, plan)
    if (built.model.image_size, built.model.channels) != (plan.latent_size, codec.space.channels):
        raise UserError(
            f"config.model.channels={built.model.channels}, but the autoencoder's latents have "
            f"{codec.space.channels}"
        )
    null = None
    if captioned and encoder:
        # Every process checks, so that all of them stop here, before hours of encoding.
        _check_known_captions(captioned, plan, encoder, chosen)
        (null,) = encode_captions(encoder, [("the empty prompt", [""])])
    can_resume(folder, folder / PLAN, str(folder), "tp_jax.prepare")
    with hold(folder, str(folder)):
        start_folder(folder, plan)

        mine = range(jax.process_index(), plan.shards, jax.process_count())
        todo = [shard for shard in mine if read_statistics(folder, plan, shard) is None]
        images = sum(len(plan.shard_range(shard)) for shard in todo)
        say(
            f"{fields.source}: {plan.records:,} images into {plan.shards} shards of latents in "
            f"{folder}; {len(mine) - len(todo)} of {len(mine)} shards of this process are finished"
        )
        with progress_bar(images, "preparing") as bar:
            records = encode_images(config, source, plan, codec, encoder, chosen, todo)
            for shard in todo:
                write_shard(folder, plan, shard, records, bar)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("all shards are written")
        if jax.process_index() == 0:
            header = write_header(folder, plan, null)
            skipped = f", {len(header.skipped)} skipped" if header.skipped else ""
            say(
                f"done: {sum(header.counts):,} images{skipped}; to train on them set "
                f"config.data.source=latents and config.data.dir={folder}"
            )
            for name in header.skipped:
                say(f"skipped: {name}")


def _check_source(source: Source, config: ConfigDict) -> None:
    """Raise a UserError unless the source is on disk and has the condition that the model takes."""
    kind, name = config.model.kind, f"config.prepare.source={config.prepare.source!r}"
    takes_text = config_lib.model_config(config).condition_kind == "text"
    taken, other = ("caption", "label") if takes_text else ("label", "caption")
    if source.condition_kind == other:
        raise UserError(
            f"{name} has {other}s, but a {kind} model takes {taken}s: choose another source or "
            f"model"
        )
    if source.condition_kind == "label" and config.prepare.captions:
        raise UserError(
            f"config.prepare.captions={config.prepare.captions}, but {name} has labels: set 0"
        )


def make_plan(
    config: ConfigDict, source: Source, codec: Codec, encoder: TextEncoder | None = None
) -> LatentsPlan:
    """Collect the settings that determine the content of the shards.

    Raises:
      UserError: the source doesn't hold colour images, or has fewer images than
        `config.prepare.num`, or the model doesn't accept the encoder's output.
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
        source=" ".join((fields.source, *fields.columns)),
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
        background=source.background,
    )


def choose_images(source: Source, plan: LatentsPlan) -> np.ndarray:
    """Return the ascending indices of the images that are prepared."""
    count = len(source.records)
    if not plan.num:
        return np.arange(count)
    # The legacy generator, because its numbers are the same in every version of NumPy.
    rng = np.random.RandomState(np.random.MT19937(plan.seed))
    return np.sort(rng.permutation(count)[: plan.num])


def _first_captions(plan: LatentsPlan, captions: Sequence[str]) -> Sequence[str]:
    return captions[: plan.captions] if plan.captions else captions


def _check_known_captions(
    source: CaptionSource, plan: LatentsPlan, encoder: TextEncoder, chosen: np.ndarray
) -> None:
    """Check every caption that is known without reading images."""
    for index in chosen:
        captions = _first_captions(plan, source.known_captions(index))
        check_captions(encoder, captions, source.record_name(index))


def start_folder(folder: epath.Path, plan: LatentsPlan) -> None:
    """Write the plan into a new folder, or compare it with the plan of a folder that is resumed.

    Raises:
      UserError: the folder holds other files, or was begun with another plan.
    """
    run_on_first(lambda: _start_folder(folder, plan))


def _start_folder(folder: epath.Path, plan: LatentsPlan) -> None:
    path = folder / PLAN
    if not can_resume(folder, path, str(folder), "tp_jax.prepare"):
        make_folder(folder, str(folder))
        write_json(path, plan.to_json())
        return
    try:
        old = plan_from_json(read_json(path, remedy="use a new folder"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): use a new folder") from error
    changed = first_difference(vars(old), vars(plan))
    if changed:
        was, now = changed.old, changed.new
        if changed.name == "class_names":
            was, now = _class_changes(was, now), _class_changes(now, was)
        raise UserError(
            f"{folder} was begun with other settings: {changed.name} was {str(was)[:200]}, "
            f"now {str(now)[:200]}; resume with the same settings, or use a new folder"
        )


def _class_changes(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Describe a list of classes by the names that another list lacks."""
    if set(names) == set(others):
        return str(names)
    only = sorted(set(names) - set(others))
    return f"{len(names)} classes" + (f" with {', '.join(only)}" if only else "")


def encode_images(
    config: ConfigDict,
    source: Source,
    plan: LatentsPlan,
    codec: Codec,
    encoder: TextEncoder | None,
    chosen: np.ndarray,
    shards: Sequence[int],
) -> Iterator[bytes | str]:
    """Yield the records of some shards in order.

    Args:
      chosen: indices of the images that are prepared.
      shards: the shards to make.

    Yields:
      A record, or the reason if an image can't be read and `plan.skip_corrupt` is set.

    Raises:
      UserError: an image can't be read and `plan.skip_corrupt` isn't set, or a caption can't be
        encoded.
    """
    indices = [int(index) for shard in shards for index in chosen[plan.shard_range(shard)]]
    batch_size = padded_batch_size(codec.mesh, config.prepare.batch_size)
    read = _ReadPixels(source, plan.pixel_size)
    dataset = grain.MapDataset.source(indices).map(read).to_iter_dataset()
    if config.data.workers:
        signals.before_workers()
        options = grain.MultiprocessingOptions(config.data.workers)
        dataset = dataset.mp_prefetch(options)
    batches = _in_batches(iter(dataset), batch_size)
    # Start the next batch before the records of the last one are written, to keep devices busy.
    waiting = None
    for batch in batches:
        images = np.zeros((batch_size, plan.pixel_size, plan.pixel_size, 3), np.uint8)
        for row, element in enumerate(batch):
            images[row] = element["image"]
        moments = _moments_with_flips(codec, images)
        following = batch, _conditions(plan, encoder, batch), moments
        if waiting:
            yield from _records(plan, *waiting)
        waiting = following
    if waiting:
        yield from _records(plan, *waiting)


# As for `ReadExample`, the repr would hold all records.
@dataclasses.dataclass(frozen=True, repr=False)
class _ReadPixels(EndsWithParent, grain.transforms.Map):
    """Read an image: index -> {"image": uint8 [S, S, 3], "name", "error", "label" or "captions"}.

    If it can't be read, the image is black, "error" says why, and "label" and "captions" are
    missing.
    """

    source: Source
    size: int

    # Grain annotates this method with `-> None`.
    def map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int
    ) -> dict[str, Any]:
        name = self.source.record_name(index)
        try:
            record = self.source.records[index]
            image = decode_pixels(record["image"], self.size, 3, self.source.background)
            text = self.source.condition_kind == "caption"
            rest = {"captions": record["captions"]} if text else {"label": int(record["label"])}
            return {"image": image, "name": name, "error": "", **rest}
        except DECODE_ERRORS as error:
            black = np.zeros((self.size, self.size, 3), np.uint8)
            return {"image": black, "name": name, "error": why_unreadable(name, error)}


def _in_batches(elements: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for element in elements:
        batch.append(element)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _moments_with_flips(codec: Codec, images: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
    """Start computing mean and std of the posteriors of images and of their mirror images."""
    sharding = batch_sharding(codec.mesh)
    scaled = images.astype(np.float32) / 127.5 - 1
    both = (scaled, np.ascontiguousarray(scaled[:, :, ::-1]))
    return [codec.moments(jax.device_put(side, sharding)) for side in both]


def _conditions(
    plan: LatentsPlan, encoder: TextEncoder | None, batch: Sequence[dict[str, Any]]
) -> list[int | EncodedText | None]:
    """Return the label or encoded captions of each element; None if it can't be read."""
    if encoder is None:
        return [element.get("label") for element in batch]
    readable = [element for element in batch if not element["error"]]
    captions = [
        (element["name"], _first_captions(plan, element["captions"])) for element in readable
    ]
    found = iter(encode_captions(encoder, captions))
    return [None if element["error"] else next(found) for element in batch]


def _records(
    plan: LatentsPlan,
    batch: Sequence[dict[str, Any]],
    conditions: Sequence[int | EncodedText | None],
    moments: Sequence[tuple[jax.Array, jax.Array]],
) -> Iterator[bytes | str]:
    # [mirrored, mean and std, B, h, w, c] -> [B, mirrored, mean and std, h, w, c]
    with np.errstate(over="ignore"):  # What float16 can't hold becomes infinity.
        rows = np.moveaxis(np.array(jax.device_get(moments), np.float16), 2, 0)
    for element, condition, row in zip(batch, conditions, rows, strict=False):
        if condition is not None:
            for what, array in (("mean", row[:, 0]), ("standard deviation", row[:, 1])):
                name = f"{element['name']}: the {what} of its latent in float16"
                check_finite(name, array, "check config.autoencoder.path and .dtype")
        if element["error"] and not plan.skip_corrupt:
            raise UserError(
                f"{element['error']}; repair or replace it and run the same command again, which "
                f"resumes, or prepare into a new folder with --config.prepare.skip_corrupt=true"
            )
        yield element["error"] if condition is None else plan.encode(condition, row)
