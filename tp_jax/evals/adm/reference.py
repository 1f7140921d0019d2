"""Feature statistics of image sets, and the references that samples are compared with.

N images, D features.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, cast

import jax
import numpy as np
from etils import epath

import tp_jax
from tp_jax.evals.adm.features import PROTOCOLS, Extractor
from tp_jax.evals.adm.metrics import Moments, inception_score, merge, moments
from tp_jax.files.atomic import replacing
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.pictures.reading import ARRAY, UNREADABLE, ImageSet, array_names, open_images

MIN_GROUP = 1024  # batches are joined to at least this many rows before the moments are updated
# Array names in a statistics file. The first four are those of the published ADM references.
GAUSSIANS = (("mu", "sigma"), ("mu_s", "sigma_s"))
FEATURES, SCORE, COUNT = "features", "inception_score", "count"
PROTOCOL, IDENTITY, SIZE = "protocol", "inception", "image_size"
DINOV2, DINOV2_IDENTITY, DINOV2_COUNT = ("mu_dinov2", "sigma_dinov2"), "dinov2", "dinov2_count"


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a set of images; a field that isn't known is None.

    Attributes:
      pool: Gaussian of the pooled features, for FID.
      spatial: Gaussian of the spatial features, for sFID.
      features: pooled features [N, D] float32, for precision and recall.
      inception_score: Inception Score of the set.
      count: number of images that the Gaussians were computed from.
    """

    pool: Gaussian
    spatial: Gaussian | None
    features: np.ndarray | None
    inception_score: float | None
    count: int | None


@dataclasses.dataclass(frozen=True)
class Measured(Statistics):
    """Statistics computed from images, so that only `spatial` can be None."""

    features: np.ndarray
    inception_score: float
    count: int


@dataclasses.dataclass(frozen=True)
class Dinov2Statistics:
    """Statistics of the DINOv2 features of a set of images, for FD-DINOv2.

    Attributes:
      gaussian: of the features.
      count: number of images.
      identity: SHA-256 of the weights.
    """

    gaussian: Gaussian
    count: int
    identity: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """The images or statistics that samples are compared with; unknown fields are None.

    Attributes:
      name: file name, for messages and results.
      statistics: the statistics that the file contains.
      images: the images that the file contains, from which missing statistics are computed.
      size: height and width of the images.
      protocol: key of `PROTOCOLS` that the statistics were computed with.
      identity: SHA-256 of the Inception weights that computed the statistics.
      dinov2: statistics of DINOv2 features.
    """

    name: str
    statistics: Statistics | None
    images: ImageSet | None
    size: tuple[int, int] | None
    protocol: str | None
    identity: str | None
    dinov2: Dinov2Statistics | None = None


def compute_statistics(
    images: Iterable[np.ndarray], count: int, extractor: Extractor, what: str
) -> Measured:
    """Extract the features of images and compute their statistics.

    Args:
      images: uint8 batches [?, H, W, 3].
      count: expected number of images, for the progress bar.
      extractor: the feature network.
      what: label for the progress bar and messages.

    Raises:
      UserError: there are fewer than two images, or an image can't be read.
    """
    pools, logits, pool, spatial = [], [], None, None
    for group in _join_batches(_with_progress_bar(extractor.batches(images), count, what)):
        pools.append(group.pool)
        logits.append(group.logits)
        pool = _add_rows(pool, group.pool)
        if PROTOCOLS[extractor.protocol].spatial:
            spatial = _add_rows(spatial, group.spatial)
    if pool is None or pool.count < 2:
        found = pool.count if pool else 0
        raise UserError(f"{what}: a covariance needs at least 2 images, found {found}")
    return Measured(
        to_gaussian(pool),
        to_gaussian(spatial) if spatial else None,
        np.concatenate(pools),
        inception_score(np.concatenate(logits)),
        pool.count,
    )


def _with_progress_bar(batches: Iterable[Any], count: int, what: str) -> Iterator[Any]:
    with progress_bar(count, what) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.pool))


def _join_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Join consecutive batches of features into groups of at least MIN_GROUP rows."""
    waiting, count = [], 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch.pool)
        if count >= MIN_GROUP:
            yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *waiting)
            waiting, count = [], 0
    if waiting:
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *waiting)


def _add_rows(before: Moments | None, rows: np.ndarray) -> Moments:
    return merge(before, moments(rows)) if before else moments(rows)


def to_gaussian(found: Moments) -> Gaussian:
    """Return the mean and the unbiased covariance of at least two rows."""
    return Gaussian(found.mean, found.covariance())


def save_statistics(
    path: epath.Path,
    statistics: Measured,
    extractor: Extractor,
    size: tuple[int, int],
    dinov2: Dinov2Statistics | None = None,
) -> None:
    """Write computed statistics as an npz that `read_reference` can read.

    Args:
      path: FILE.npz.
      statistics: the statistics to write.
      extractor: the network that computed them; its protocol and weights are recorded.
      size: height and width of the images.
      dinov2: more statistics to write.
    """
    arrays: dict[str, Any] = {
        FEATURES: statistics.features,
        SCORE: statistics.inception_score,
        COUNT: statistics.count,
        PROTOCOL: extractor.protocol,
        IDENTITY: extractor.identity,
        SIZE: size,
        "tp_jax": tp_jax.__version__,
    }
    gaussians = [statistics.pool, statistics.spatial, dinov2.gaussian if dinov2 else None]
    for names, gaussian in zip((*GAUSSIANS, DINOV2), gaussians, strict=True):
        if gaussian:
            arrays |= dict(zip(names, (gaussian.mean, gaussian.covariance), strict=True))
    if dinov2:
        arrays |= {DINOV2_IDENTITY: dinov2.identity, DINOV2_COUNT: dinov2.count}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_reference(path: epath.Path) -> Reference:
    """Read a reference from a file or folder.

    Args:
      path: images (npz or folder), a published ADM file (mu, sigma, mu_s, sigma_s and images), a
        pytorch-fid file (mu, sigma), or a file written by `save_statistics`.

    Raises:
      UserError: the file is none of these, or is damaged.
    """
    names = set() if path.is_dir() or not path.exists() else array_names(path)
    if "mu" not in names and ARRAY not in names and names:
        raise UserError(
            f"{path} has the arrays {', '.join(sorted(names))} but neither mu nor {ARRAY}: give "
            f"images, published ADM statistics or a file written by --save_statistics"
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
    # Other tools write no spatial statistics, so a file that has them but names no protocol is a
    # published ADM reference.
    protocol = (
        str(arrays[PROTOCOL]) if PROTOCOL in arrays else "adm" if statistics.spatial else None
    )
    identity = str(arrays[IDENTITY]) if IDENTITY in arrays else None
    if SIZE in arrays:
        size = cast(tuple[int, int], tuple(int(side) for side in arrays[SIZE]))
    dinov2 = None
    if DINOV2_IDENTITY in arrays:
        dinov2 = Dinov2Statistics(
            _read_gaussian(path, arrays, *DINOV2),
            int(arrays[DINOV2_COUNT]),
            str(arrays[DINOV2_IDENTITY]),
        )
    return Reference(path.name, statistics, images, size, protocol, identity, dinov2)


def _read_arrays(path: epath.Path, names: set[str]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in sorted(names)}
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({error}): create it again") from error
    return arrays


def _read_gaussian(
    path: epath.Path, arrays: dict[str, np.ndarray], mean_name: str, covariance_name: str
) -> Gaussian:
    mean, covariance = arrays[mean_name], arrays.get(covariance_name)
    if covariance is None or mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        shape = "missing" if covariance is None else list(covariance.shape)
        raise UserError(
            f"{path}: {mean_name} is {list(mean.shape)} and {covariance_name} is {shape}, but the "
            f"shapes must be [D] and [D, D]: create the file again"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(
            f"{path}: {mean_name} or {covariance_name} isn't finite: create the file again"
        )
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))


def check_reference(reference: Reference, extractor: Extractor, size: tuple[int, int]) -> None:
    """Check that a reference can be compared with images, before any image is read.

    Args:
      reference: the reference to check.
      extractor: the feature network of the images.
      size: height and width of the images.

    Raises:
      UserError: the reference has a different protocol, Inception, resolution or feature width.
    """
    name = reference.name
    if reference.protocol not in (None, extractor.protocol):
        raise UserError(
            f"{name} was made with protocol {reference.protocol}, not {extractor.protocol}: "
            f"set --protocol={reference.protocol} or use another reference"
        )
    if reference.identity not in (None, extractor.identity):
        raise UserError(
            f"{name} was made with other Inception weights (it has {reference.identity}, these are "
            f"{extractor.identity}): use the same weights, or create the reference again"
        )
    if reference.size not in (None, size):
        raise UserError(
            f"the images are {size[0]}×{size[1]}, but those of {name} are "
            f"{reference.size[0]}×{reference.size[1]}: use a reference of the same size"
        )
    if reference.statistics:
        shapes = extractor.output_shapes(size)
        for feature in ("pool", "spatial"):
            gaussian = getattr(reference.statistics, feature)
            width = getattr(shapes, feature).shape[-1]
            if gaussian and len(gaussian.mean) != width:
                raise UserError(
                    f"{name} has {len(gaussian.mean)} {feature} features, but the network has "
                    f"{width}: use a reference made with this Inception"
                )


def complete_reference(reference: Reference, extractor: Extractor) -> Reference:
    """Return the reference with the statistics that were missing, computed from its images.

    Gaussians from the file are kept, because those of the published references were computed from
    more images than the file contains. Call `check_reference` first.
    """
    known, images = reference.statistics, reference.images
    if images is None or (known and known.features is not None):
        return reference
    batches = images.batches(extractor.batch_size, images.count)
    found = compute_statistics(batches, images.count, extractor, f"features of {reference.name}")
    if known:
        found = dataclasses.replace(known, features=found.features)
    return dataclasses.replace(reference, statistics=found)
