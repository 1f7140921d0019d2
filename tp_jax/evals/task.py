"""What an evaluation is asked for; the flags of `tp_jax.evaluate`."""

import dataclasses

from etils import epath


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of a suite.

    Attributes:
      samples: FILE.npz or a folder of PNGs.
      reference: what to compare with; may be None where only statistics are saved.
      inception: a folder that `tp_jax.convert --kind=inception` wrote.
      protocol: "adm" or "pytorch-fid".
      out: FILE.json for the scores.
      save_statistics: FILE.npz, to be a reference later.
      num: images to take; all by default.
    """

    samples: epath.Path
    reference: epath.Path | None
    inception: epath.Path
    protocol: str = "adm"
    out: epath.Path | None = None
    save_statistics: epath.Path | None = None
    batch_size: int = 64
    num: int | None = None
