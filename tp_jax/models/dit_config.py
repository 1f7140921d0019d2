"""The fields of `config.model` for a DiT."""

import dataclasses

from tp_jax.messages.errors import UserError
from tp_jax.models.config import Takes, TransformerConfig, attention_flops

# The sizes that facebookresearch/DiT published.
SIZES = {
    "S": dict(depth=12, width=384, heads=6),
    "B": dict(depth=12, width=768, heads=12),
    "L": dict(depth=24, width=1024, heads=16),
    "XL": dict(depth=28, width=1152, heads=16),
}


@dataclasses.dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """A DiT.

    Attributes:
      num_classes: 0 is the unconditional model, whose one label is 0.
      frame: how the model is given a frame, which what it draws is added to: "" not at all; as
        further "channels" of its input; or as further "tokens", which tokens attend to.
    """

    mlp_ratio: int = 4
    num_classes: int = 1000
    frame: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame not in ("", "channels", "tokens"):
            raise UserError(
                f"config.model.frame={self.frame!r}: choose channels or tokens, or leave it empty"
            )

    @property
    def tokens(self) -> int:
        """Number N of tokens, the frame's among them."""
        return super().tokens * (2 if self.frame == "tokens" else 1)

    @property
    def takes(self) -> Takes:
        """A frame where `frame` says how, else a label."""
        return "frame" if self.frame else "label"

    @property
    def classes(self) -> int:
        """As of `TransformerConfig`."""
        return self.num_classes

    @property
    def unconditional(self) -> bool:
        """As of `TransformerConfig`."""
        return self.num_classes == 0

    def block_flops(self, layer: int) -> float:
        """As of `TransformerConfig`."""
        n, d = self.tokens, self.width
        linear = 8 + 4 * self.mlp_ratio
        return linear * n * d**2 + attention_flops(n, d) + 12 * d**2


def check_decodable(config: TransformerConfig) -> None:
    """Raises a UserError unless a model has one thinking layer, whose steps are to be decoded."""
    if not isinstance(config, DiTConfig) or config.takes != "frame":
        raise UserError(
            "latent steps are decoded by a dit model that is given a frame: set config.model.frame"
        )
    if len(config.thinking.layers) != 1:
        raise UserError(
            f"config.model.thinking.layers={config.thinking.layers}: latent steps are decoded of "
            f"one layer; name one"
        )
