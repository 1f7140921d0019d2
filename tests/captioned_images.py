"""Small captioned image data sets in the layouts of MSCOCO and TFDS.

The captions use the vocabulary of Shapes, so that its word encoder can encode them.
"""

import io
import json

import numpy as np
from fake_imagenet import photo

IMAGES, CAPTIONS_PER_IMAGE = 12, 3  # the last image has only one caption
COLOURS = ("red", "green", "blue", "pink", "purple", "orange")


def captions_of(i: int) -> list[str]:
    found = [f"a {COLOURS[i % 6]} circle", f"{('two', 'three')[i // 6]} {COLOURS[i % 6]} rings"]
    found.append(f"a ring left of a {COLOURS[i % 6]} square")
    return found if i < IMAGES - 1 else found[:1]


def make_coco(folder, split: str = "train2017") -> None:
    """Write a data set in MSCOCO's layout, with images and captions not sorted by id."""
    (folder / "annotations").mkdir(parents=True)
    (folder / split).mkdir()
    images, notes = [], []
    for i in reversed(range(IMAGES)):
        name = f"{i:012d}.jpg"
        (folder / split / name).write_bytes(photo(i))
        images.append({"id": 100 + i, "file_name": name, "width": 64, "height": 64})
        for j, caption in reversed(list(enumerate(captions_of(i)))):
            notes.append({"image_id": 100 + i, "id": 10 * i + j, "caption": f"{caption}\n"})
    content = {"info": {}, "licenses": [], "images": images, "annotations": notes}
    (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


def make_fake_captions(folder) -> None:
    """Write the TFDS data set `fake_captions`, with the features of `coco_captions`.

    It has a name of its own: for `coco_captions`, TFDS would use its registered builder.
    """
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class FakeCaptions(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.1.0")

            def _info(self):
                text = {"id": np.int64, "text": np.str_}
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "captions": tfds.features.Sequence(text),
                }
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(IMAGES):
                    captions = [{"id": j, "text": text} for j, text in enumerate(captions_of(i))]
                    name = f"{i:012d}.jpg"
                    example = {"image": io.BytesIO(photo(i)), "image/filename": name}
                    yield i, example | {"captions": captions}

    FakeCaptions(data_dir=folder, file_format="array_record").download_and_prepare()


def edit_coco_annotations(change, folder):
    """Let `change` edit the annotations of a data set in MSCOCO's layout in place."""
    path = folder / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
