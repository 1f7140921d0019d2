"""Statistics of a set of images, on disk and off, and what samples are compared with."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, cast

import jax
import numpy as np
from etils import epath

import tp_jax
from tp_jax.evals.adm.features import PROTOCOLS, Extractor
from tp_jax.evals.adm.statistics import Moments, inception_score, merge, moments
from tp_jax.files.atomic import replacing
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.pictures.reading import ARRAY, UNREADABLE, ImageSet, array_names, open_images

GROUP = 1024  # rows whose scatter is computed at once
# Arrays of a statistics file: the first four are named as in the published ADM references.
GAUSSIANS = (("mu", "sigma"), ("mu_s", "sigma_s"))
FEATURES, SCORE, COUNT = "features", "inception_score", "count"
PROTOCOL, IDENTITY, SIZE = "protocol", "inception", "image_size"


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """mean [D] and covariance [D, D], float64."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the scores need to know of a set of images; None is what isn't known.

    Attributes:
      count: images behind the Gaussians.
      spatial: of sFID's features.
      features: pool features [N, D] float32 for precision and recall.
    """

    pool: Gaussian
    spatial: Gaussian | None
    features: np.ndarray | None
    inception_score: float | None
    count: int | None


@dataclasses.dataclass(frozen=True)
class Measured(Statistics):
    """The statistics of images that were at hand."""

    features: np.ndarray
    inception_score: float
    count: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are compared with; None is what its file doesn't say.

    Attributes:
      statistics: as far as the file has them.
      images: to compute from them what the statistics lack.
      identity: of the Inception weights.
    """

    name: str
    statistics: Statistics | None
    images: ImageSet | None
    size: tuple[int, int] | None
    protocol: str | None
    identity: str | None


def measure(images: Iterable[np.ndarray], count: int, extractor: Extractor, what: str) -> Measured:
    """The statistics of images, whose features are extracted here.

    Args:
      images: uint8 batches [?, H, W, 3].
      count: how many are expected, for the progress bar.
      what: they are, for the progress bar and messages.

    Raises:
      UserError: there are fewer than two images, or one can't be read.
    """
    pools, logits, pool, spatial = [], [], None, None
    for group in _grouped(_progress(extractor.batches(images), count, what)):
        pools.append(group.pool)
        logits.append(group.logits)
        pool = _merged(pool, group.pool)
        if PROTOCOLS[extractor.protocol].spatial:
            spatial = _merged(spatial, group.spatial)
    if pool is None or pool.count < 2:
        found = pool.count if pool else 0
        raise UserError(f"{what}: {found} images have no covariance; give 2 or more")
    return Measured(
        _gaussian(pool),
        _gaussian(spatial) if spatial else None,
        np.concatenate(pools),
        inception_score(np.concatenate(logits)),
        pool.count,
    )


def _progress(batches: Iterable[Any], count: int, what: str) -> Iterator[Any]:
    with progress_bar(count, what) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.pool))


def _grouped(batches: Iterable[Any]) -> Iterator[Any]:
    """Joins batches of features until they have GROUP rows or more."""
    kept, count = [], 0
    for batch in batches:
        kept.append(batch)
        count += len(batch.pool)
        if count >= GROUP:
            yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)
            kept, count = [], 0
    if kept:
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)


def _merged(before: Moments | None, rows: np.ndarray) -> Moments:
    return merge(before, moments(rows)) if before else moments(rows)


def _gaussian(found: Moments) -> Gaussian:
    return Gaussian(found.mean, found.covariance())


def save_statistics(
    path: epath.Path, statistics: Measured, extractor: Extractor, size: tuple[int, int]
) -> None:
    """Writes measured statistics as an npz that `read_reference` reads."""
    arrays: dict[str, Any] = {
        FEATURES: statistics.features,
        SCORE: statistics.inception_score,
        COUNT: statistics.count,
        PROTOCOL: extractor.protocol,
        IDENTITY: extractor.identity,
        SIZE: size,
        "tp_jax": tp_jax.__version__,
    }
    for names, gaussian in zip(GAUSSIANS, (statistics.pool, statistics.spatial), strict=True):
        if gaussian:
            arrays |= dict(zip(names, (gaussian.mean, gaussian.covariance), strict=True))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_reference(path: epath.Path) -> Reference:
    """A reference: images, a published ADM file (mu, sigma, mu_s, sigma_s and images), a file of
    pytorch-fid (mu, sigma) or of `save_statistics`.

    Raises:
      UserError: it is none of these, or damaged.
    """
    names = set() if path.is_dir() or not path.exists() else array_names(path)
    if "mu" not in names and ARRAY not in names and names:
        raise UserError(
            f"{path} has neither mu nor {ARRAY} but {', '.join(sorted(names))}: name images, "
            f"published ADM statistics or a file of --save_statistics"
        )
    images = open_images(path) if ARRAY in names or not names else None
    size = images.size if images else None
    if "mu" not in names:
        return Reference(path.name, None, images, size, None, None)
    arrays = _read_arrays(path, names - {ARRAY})
    pool, spatial = GAUSSIANS
    statistics = Statistics(
        _read_gaussian(path, arrays, *pool),
        _read_gaussian(path, arrays, *spatial) if spatial[0] in arrays else None,
        arrays.get(FEATURES),
        float(arrays[SCORE]) if SCORE in arrays else None,
        int(arrays[COUNT]) if COUNT in arrays else None,
    )
    # Only the ADM evaluator and we write spatial statistics.
    protocol = (
        str(arrays[PROTOCOL]) if PROTOCOL in arrays else "adm" if statistics.spatial else None
    )
    identity = str(arrays[IDENTITY]) if IDENTITY in arrays else None
    if SIZE in arrays:
        size = cast(tuple[int, int], tuple(int(side) for side in arrays[SIZE]))
    return Reference(path.name, statistics, images, size, protocol, identity)


def _read_arrays(path: epath.Path, names: set[str]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in sorted(names)}
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({error}): write it again") from error
    return arrays


def _read_gaussian(
    path: epath.Path, arrays: dict[str, np.ndarray], mean_name: str, covariance_name: str
) -> Gaussian:
    mean, covariance = arrays[mean_name], arrays.get(covariance_name)
    if covariance is None or mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        shape = "missing" if covariance is None else list(covariance.shape)
        raise UserError(
            f"{path}: {mean_name} is {list(mean.shape)} and {covariance_name} {shape}, but must "
            f"be [D] and [D, D]: write it again"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: {mean_name} or {covariance_name} isn't finite: write it again")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))


def check_reference(reference: Reference, extractor: Extractor, size: tuple[int, int]) -> None:
    """Checks all that can be checked before any image is read.

    Args:
      size: height and width of the images to compare.

    Raises:
      UserError: the reference is of another protocol, Inception, resolution or feature width.
    """
    name = reference.name
    if reference.protocol not in (None, extractor.protocol):
        raise UserError(
            f"{name} was made with protocol {reference.protocol}, not {extractor.protocol}: "
            f"set --protocol={reference.protocol} or name another reference"
        )
    if reference.identity not in (None, extractor.identity):
        raise UserError(
            f"{name} was made with other Inception weights ({reference.identity}, here "
            f"{extractor.identity}): use those, or make the reference again"
        )
    if reference.size not in (None, size):
        raise UserError(
            f"the images are {size[0]}×{size[1]}, those of {name} "
            f"{reference.size[0]}×{reference.size[1]}: name a reference of the same size"
        )
    if reference.statistics:
        widths = extractor.widths(size)
        for feature in ("pool", "spatial"):
            gaussian = getattr(reference.statistics, feature)
            width = getattr(widths, feature).shape[-1]
            if gaussian and len(gaussian.mean) != width:
                raise UserError(
                    f"{name} has {len(gaussian.mean)} {feature} features, the network {width}: "
                    f"name a reference made with this Inception"
                )


def complete(reference: Reference, extractor: Extractor) -> Reference:
    """The reference with what can be computed from its images; it must have been checked.

    Where the file has Gaussians they stay: the published ones are of more images than it holds.
    """
    known, images = reference.statistics, reference.images
    if images is None or (known and known.features is not None):
        return reference
    batches = images.batches(extractor.batch_size, images.count)
    found = measure(batches, images.count, extractor, f"features of {reference.name}")
    if known:
        found = dataclasses.replace(known, features=found.features)
    return dataclasses.replace(reference, statistics=found)
