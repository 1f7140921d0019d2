"""What other code has to know of the latents of an autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """What other code has to know of an autoencoder.

    Attributes:
      identity: SHA-256 of its weights.
      channels, scale, shift: latents are (z - shift) · scale.
      factor: pixels of an image's side for one of its latents.
    """

    identity: str
    channels: int
    scale: float
    shift: float
    factor: int = 8
