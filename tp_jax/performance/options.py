"""What `tp_jax.bench` measures."""

import dataclasses

from etils import epath
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """What to measure; the flags of `tp_jax.bench`.

    Attributes:
      what: keys of `BENCHMARKS`.
      config: the config; it says what is trained, sampled, prepared and so on.
      repetitions: how often each contender is measured.
      seconds: the least time of one repetition; short calls are repeated.
      peer_dit: a checkout of facebookresearch/DiT to measure beside a DiT; None for none.
      peers: how the peers in PyTorch run: "eager", "compile", both or neither.
      experts: the numbers M of experts that `dispatch` measures.
      latent_steps: the numbers T of latent steps that `dispatch` measures.
      json: a file for the results. What it holds already isn't measured again.
      report: a file for the results as Markdown.
    """

    what: tuple[str, ...]
    config: ConfigDict
    repetitions: int = 5
    seconds: float = 1.0
    peer_dit: epath.Path | None = None
    peers: tuple[str, ...] = ("eager", "compile")
    experts: tuple[int, ...] = (2, 8, 64)
    latent_steps: tuple[int, ...] = (1, 2, 5)
    json: epath.Path | None = None
    report: epath.Path | None = None
