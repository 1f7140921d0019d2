"""Any TFDS data set with `image` and `label`, prepared as ArrayRecord; TensorFlow isn't needed."""

from tp_jax.data.source import Source
from tp_jax.errors import UserError


def open_tfds(name: str, dir: str, split: str, section: str) -> Source:
    """Opens a data set that is on disk already.

    Args:
      name: as `imagenet2012` or `imagenet2012:5.1.0`.
      dir: TFDS's data_dir; "" is TFDS's own default.
      section: of the config, for errors.

    Raises:
      UserError: it isn't there, isn't ArrayRecord, or has no image and label.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=dir or None, file_format="array_record")
        features = builder.info.features
        if not {"image", "label"} <= set(features):
            raise UserError(f"{section}.source=tfds/{name} has no features image and label")
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
    return Source(records, None, channels, tuple(features["label"].names))
