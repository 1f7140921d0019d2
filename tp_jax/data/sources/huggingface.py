"""Data sets of Hugging Face's library `datasets` on disk: images with labels or captions."""

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.data.source import Source
from tp_jax.data.sources.captions import CaptionSource, captions_of
from tp_jax.messages.errors import UserError, first_line

# The columns that are taken if `columns` names none; the first that exists.
IMAGES = ("image", "img", "jpg", "png", "webp")
CONDITIONS = ("label", "labels", "fine_label", "caption", "captions", "text", "txt")


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a data set as records.

    Attributes:
      table: a `datasets.Dataset` with only the two columns.
      image, condition: names of the columns.
      key: of the condition in a record: "label" or "captions".
    """

    table: Any
    image: str
    condition: str
    key: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[int(index)]
        image, condition = row[self.image], row[self.condition]
        data = image["bytes"]
        if data is None and image["path"]:
            data = epath.Path(image["path"]).read_bytes()
        if self.key == "label":
            return {"image": data, "label": condition}
        return {"image": data, "captions": captions_of(condition)}


class _Labelled(Source):
    records: _Rows


class _Captioned(CaptionSource):
    records: _Rows


def open_datasets(dir: str, split: str, section: str, columns: Sequence[str] = ()) -> Source:
    """Open a folder that `Dataset.save_to_disk` wrote, or one of Parquet files.

    Nothing is downloaded. Parquet files are converted once to the cache of `datasets`.

    Args:
      dir: the folder.
      split: the split, if the folder has several.
      section: section of the config that names the source, for error messages.
      columns: names of the column of images, and of that of labels or captions; () takes the first
        of `IMAGES` and of `CONDITIONS` that exist.

    Raises:
      UserError: `datasets` isn't installed, the folder isn't such a data set, or lacks the split or
        the columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{section}.source='datasets' needs {error.name}: pip install -e '.[datasets]'"
        ) from error
    if not dir or not epath.Path(dir).is_dir():
        raise UserError(
            f"{section}.dir={dir!r} doesn't exist: name a folder that Dataset.save_to_disk wrote, "
            f"or one of Parquet files"
        )
    table = _open_table(datasets, dir, split, section)
    image, condition = _choose_columns(table.column_names, columns, section)
    if image == condition:
        raise UserError(f"{section}.columns: {image} can't be both the images and their condition")
    table = table.select_columns([image, condition])
    features = table.features
    if not isinstance(features[image], datasets.Image):
        raise UserError(
            f"{section}.columns: {image} of {dir} isn't a column of images, but of "
            f"{features[image]}: name another"
        )
    table = table.cast_column(image, datasets.Image(decode=False))
    feature = features[condition]
    if isinstance(feature, datasets.ClassLabel):
        rows = _Rows(table, image, condition, "label")
        return _Labelled(rows, None, 3, tuple(feature.names))
    kind = getattr(feature, "dtype", None) or getattr(
        getattr(feature, "feature", feature), "dtype", ""
    )
    if kind == "string":
        return _Captioned(_Rows(table, image, condition, "captions"), None, 3, ())
    if str(kind).startswith(("int", "uint")):
        labels = np.asarray(table[condition])
        if labels.min() < 0:
            raise UserError(f"{section}.columns: {condition} of {dir} has negative labels")
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
        return _Labelled(_Rows(table, image, condition, "label"), None, 3, names)
    raise UserError(
        f"{section}.columns: {condition} of {dir} has neither labels nor captions, but {feature}: "
        f"name another column"
    )


def _open_table(datasets: Any, dir: str, split: str, section: str) -> Any:
    folder, saved = epath.Path(dir), ("dataset_dict.json", "dataset_info.json", "state.json")
    datasets.disable_progress_bars()
    try:
        if any((folder / name).exists() for name in saved):
            found = datasets.load_from_disk(dir)
        else:
            if not any(pathlib.Path(dir).rglob("*.parquet")):
                raise UserError(
                    f"{dir} isn't a data set of Hugging Face: it has none of {', '.join(saved)} "
                    f"and no .parquet files"
                )
            found = datasets.load_dataset(dir)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{section}.dir={dir}: {first_line(error)}") from error
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise UserError(
            f"{section}.split={split!r}: {dir} has {', '.join(sorted(found))}: name one of them"
        )
    return found[split]


def _choose_columns(
    present: Collection[str], columns: Sequence[str], section: str
) -> tuple[str, str]:
    if columns and len(columns) != 2:
        raise UserError(
            f"{section}.columns={tuple(columns)}: give two names, that of the images and that of "
            f"the labels or captions, or () for the usual ones"
        )
    chosen = []
    for place, usual in enumerate((IMAGES, CONDITIONS)):
        wanted = columns[place : place + 1] or usual
        name = next((name for name in wanted if name in present), None)
        if name is None:
            what = "images" if place == 0 else "labels or captions"
            raise UserError(
                f"{section}.columns: there is no column {' or '.join(wanted)} for {what}; there "
                f"are {', '.join(sorted(present))}"
            )
        chosen.append(name)
    return chosen[0], chosen[1]
