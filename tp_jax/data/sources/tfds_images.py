"""Any TFDS data set of images with `label` or `captions`, as ArrayRecord.

Reading needs no TensorFlow, but TFDS's own definitions of some, as coco_captions, import it.
"""

import dataclasses
from typing import Any

from tp_jax.data.source import Source
from tp_jax.data.sources.captions import CaptionSource
from tp_jax.data.transforms import Records
from tp_jax.messages.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Captioned:
    """Records of TFDS -> {"image", "captions": (str, …)}."""

    records: Records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        captions = tuple(bytes(text).decode().strip() for text in record["captions"]["text"])
        if not captions or not all(captions):
            raise ValueError(f"its captions are {captions}, one or more of them empty")
        return {"image": record["image"], "captions": captions}


def open_tfds(name: str, dir: str, split: str, section: str) -> Source:
    """Opens a data set that is on disk already: by its features one of labels, or of captions.

    Captions are as those of `coco_captions`: a sequence of dictionaries with "text".

    Args:
      name: as `imagenet2012` or `imagenet2012:5.1.0`.
      dir: TFDS's data_dir; "" is TFDS's own default.
      section: of the config, for errors.

    Raises:
      UserError: it isn't there, isn't ArrayRecord, or has no images with labels or captions.
    """
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=dir or None, file_format="array_record")
        features = builder.info.features
        if "image" not in features or not {"label", "captions"} & set(features):
            raise UserError(
                f"{section}.source=tfds/{name} has no features image and label, or image and "
                f"captions"
            )
        records = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
    except (tfds.core.DatasetNotFoundError, OSError, AssertionError, ValueError, KeyError) as error:
        # TFDS goes on to list all it knows.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{section}.source=tfds/{name}, split {split!r}: {reason}; prepare it as "
            f"array_record with download_and_prepare and set {section}.dir to TFDS's data_dir"
        ) from error
    channels = features["image"].shape[-1]
    if "label" in features:
        return Source(records, None, channels, tuple(features["label"].names))
    return CaptionSource(_Captioned(records), None, channels, ())
