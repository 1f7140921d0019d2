"""FD-DINOv2: the Fréchet distance on features of DINOv2, run through `transformers`.

Source: Stein et al. 2023, arXiv 2306.04675, and layer6ai-labs/dgm-eval. Its published numbers are
of DINOv2 ViT-L/14 (facebook/dinov2-large) and 50,000 samples.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.adm.metrics import frechet_distance, moments
from tp_jax.evals.adm.reference import Dinov2Statistics, Reference, to_gaussian
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.pictures.reading import IMAGENET_MEAN, IMAGENET_STD, ImageSet
from tp_jax.text.published import choose_device, import_packages, load_published, weights_sha256

SIDE = 224
# DINOv2's own code resizes the position table to this much more than the number of patches.
OFFSET = 0.1


@dataclasses.dataclass(frozen=True)
class Dinov2:
    """DINOv2 as a feature network.

    Attributes:
      features: (uint8 images [B, H, W, 3]) -> the class token after the last norm, [B, D] float32.
      identity: SHA-256 of the weights; distances are comparable only for equal weights.
      batch_size: images per batch.
    """

    features: Callable[[np.ndarray], np.ndarray]
    identity: str
    batch_size: int

    def statistics(self, images: ImageSet, count: int, what: str) -> Dinov2Statistics:
        """Return the statistics of the features of the first `count` images, `what` for messages.

        Raises:
          UserError: an image can't be read.
        """
        found = []
        with progress_bar(count, f"DINOv2 features of {what}") as bar:
            for batch in images.batches(self.batch_size, count):
                found.append(self.features(batch))
                bar.update(len(batch))
        return Dinov2Statistics(to_gaussian(moments(np.concatenate(found))), count, self.identity)


def load_dinov2(folder: epath.Path, batch_size: int, device: str | None = None) -> Dinov2:
    """Load DINOv2 from a folder with config.json and model.safetensors.

    Args:
      folder: the folder, such as a copy of facebook/dinov2-large.
      batch_size: images per batch.
      device: torch device; None is a GPU if one is available, else the CPU.

    Raises:
      UserError: torch or transformers isn't installed, or the folder has no such model.
    """
    torch, transformers = import_packages("--dinov2")
    model = load_published(transformers.Dinov2Model, folder)
    _resize_positions(torch, model, folder)
    device = choose_device(device)
    model = model.float().to(device)

    @torch.inference_mode()
    def features(images: np.ndarray) -> np.ndarray:
        pixels = np.stack([prepare(image) for image in images])
        return model(torch.from_numpy(pixels).to(device)).pooler_output.cpu().numpy()

    return Dinov2(features, weights_sha256(folder), batch_size)


def prepare(image: np.ndarray) -> np.ndarray:
    """Resize and normalise an image uint8 [H, W, 3] for DINOv2: [3, 224, 224] float32."""
    resized = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, np.float32) / 255
    mean, deviation = (np.array(each, np.float32) for each in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (pixels - mean) / deviation
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _resize_positions(torch: Any, model: Any, folder: epath.Path) -> None:
    """Resize the position table as facebookresearch/dinov2 does, which transformers doesn't."""
    patch = model.config.patch_size
    if SIDE % patch:
        raise UserError(f"{folder}: patches of {patch} pixels don't divide {SIDE}: give ViT-L/14")
    wanted, table = SIDE // patch, model.embeddings.position_embeddings.data
    side = math.isqrt(table.shape[1] - 1)
    if side != wanted:
        grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = (wanted + OFFSET) / side
        grid = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        rest = grid.permute(0, 2, 3, 1).flatten(1, 2)
        model.embeddings.position_embeddings.data = torch.cat([table[:, :1], rest], 1)


def check_dinov2(reference: Reference, identity: str) -> None:
    """Check that a reference has DINOv2 statistics, or images to compute them from.

    Raises:
      UserError: it has neither, or statistics of other weights.
    """
    known = reference.dinov2
    if known is None and reference.images is None:
        raise UserError(
            f"{reference.name} has neither images nor DINOv2 statistics: give images, or write the "
            f"statistics with --save_statistics and --dinov2"
        )
    if known and known.identity != identity:
        raise UserError(
            f"{reference.name} has statistics of other DINOv2 weights (it has {known.identity}, "
            f"these are {identity}): use the same weights, or create the reference again"
        )


@dataclasses.dataclass(frozen=True)
class Dinov2Scores:
    """FD-DINOv2 and what it was computed from.

    Attributes:
      fd_dinov2: the distance; None without a reference.
      dinov2: SHA-256 of the weights.
      dinov2_count, dinov2_reference_count: number of samples and of reference images.
    """

    fd_dinov2: float | None
    dinov2: str
    dinov2_count: int
    dinov2_reference_count: int | None


def score_dinov2(
    sample: Dinov2Statistics, reference: Reference | None, network: Dinov2
) -> Dinov2Scores:
    """Score the statistics of samples; those of the reference are computed if it lacks them."""
    if reference is None:
        return Dinov2Scores(None, network.identity, sample.count, None)
    known = reference.dinov2
    if known is None and reference.images is not None:
        images = reference.images
        known = network.statistics(images, images.count, reference.name)
    assert known is not None  # as check_dinov2 has checked
    a, b = sample.gaussian, known.gaussian
    distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    return Dinov2Scores(distance, network.identity, sample.count, known.count)
