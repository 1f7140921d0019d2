"""TFDS data sets of images with a `label` or `captions`, stored as ArrayRecord.

Reading doesn't need TensorFlow, but TFDS's definitions of some data sets, such as coco_captions,
import it.
"""

import dataclasses
from typing import Any

from tp_jax.data.source import Source
from tp_jax.data.sources.captions import CaptionSource
from tp_jax.data.transforms import Records
from tp_jax.messages.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Captioned:
    """Convert records of TFDS to {"image": bytes, "captions": (str, …)}."""

    records: Records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        captions = tuple(bytes(text).decode().strip() for text in record["captions"]["text"])
        if not captions or not all(captions):
            raise ValueError(f"it has no captions or an empty one: {captions}")
        return {"image": record["image"], "captions": captions}


def open_tfds(name: str, dir: str, split: str, section: str) -> Source:
    """Open a TFDS data set that is already on disk.

    A data set with the feature `label` gives labels. Otherwise the feature `captions` must be a
    sequence of dictionaries with "text", as in `coco_captions`, and the source gives captions.

    Args:
      name: name of the data set, such as `imagenet2012` or `imagenet2012:5.1.0`.
      dir: TFDS's data_dir; "" is TFDS's default folder.
      split: name of the split, such as `train`.
      section: section of the config that names the source, for error messages.

    Raises:
      UserError: the data set isn't on disk, isn't stored as ArrayRecord, or has no images with
        labels or captions.
    """
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=dir or None, file_format="array_record")
        features = builder.info.features
        if "image" not in features or not {"label", "captions"} & set(features):
            raise UserError(
                f"{section}.source=tfds/{name} must have the features image and label, or image "
                f"and captions"
            )
        records = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
    except (tfds.core.DatasetNotFoundError, OSError, AssertionError, ValueError, KeyError) as error:
        # The following lines of TFDS's message list all known data sets.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{section}.source=tfds/{name}, split {split!r}: {reason}; prepare it as "
            f"array_record with download_and_prepare and set {section}.dir to TFDS's data_dir"
        ) from error
    channels = features["image"].shape[-1]
    if "label" in features:
        return Source(records, None, channels, tuple(features["label"].names))
    return CaptionSource(_Captioned(records), None, channels, ())
