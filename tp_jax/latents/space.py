"""Description of an autoencoder's latent space."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """The latent space of an autoencoder, as needed by data sources and checkpoints.

    Attributes:
      identity: SHA-256 of the autoencoder's weights.
      channels: number of latent channels.
      scale, shift: the model diffuses (z - shift) · scale, where z is the encoder's output.
      factor: downsampling factor; a latent's side is the image's side divided by `factor`.
    """

    identity: str
    channels: int
    scale: float
    shift: float
    factor: int = 8
