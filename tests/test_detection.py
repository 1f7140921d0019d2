"""GenEval's detector and colour classifier: checked by hand, and with small random networks."""

import json
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tp_jax.evals.geneval import detection
from tp_jax.evals.geneval.rules import COLOURS, Detection
from tp_jax.messages.errors import UserError

# Without torch


def test_there_are_80_coco_classes():
    assert len(detection.CLASSES) == len(set(detection.CLASSES)) == 80
    assert detection.CLASSES[11] == "stop sign"
    assert detection.CLASSES[64:67] == ("computer mouse", "tv remote", "computer keyboard")


def test_box_of_a_mask_ends_after_its_last_pixel():
    mask = np.zeros((6, 9), bool)
    mask[2:5, 3] = mask[3, 3:8] = True
    np.testing.assert_array_equal(detection.mask_box(mask), [3, 2, 8, 5])


def test_crop_is_grey_outside_the_mask():
    image = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    mask = np.zeros((6, 9), bool)
    mask[2:5, 3] = True
    box = np.array([3, 2, 8, 5], np.float32)
    cut = np.asarray(detection.crop(image, Detection(box, 1.0, mask)))
    assert cut.shape == (3, 5, 3)
    np.testing.assert_array_equal(cut[:, 0], image[2:5, 3])
    assert (cut[:, 1:] == 153).all()
    plain = np.asarray(detection.crop(image, Detection(box, 1.0)))
    np.testing.assert_array_equal(plain, image[2:5, 3:8])


def test_clip_input_is_the_normalised_centre():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = (255, 128, 0)  # the middle third is a square
    seen = detection.colour_input(Image.fromarray(pixels), 20)
    assert seen.shape == (3, 20, 20) and seen.dtype == np.float32
    expected = (np.array([1, 128 / 255, 0]) - detection.CLIP_MEAN) / detection.CLIP_STD
    np.testing.assert_allclose(seen, np.broadcast_to(expected[:, None, None], seen.shape), 1e-5)
    assert detection.colour_input(Image.fromarray(pixels), 10).shape == (3, 10, 10)
    assert detection.colour_input(Image.new("RGB", (1, 33)), 8).shape == (3, 8, 8)


@pytest.mark.parametrize("load", [detection.load_detector, detection.load_colour_classifier])
def test_missing_packages_are_named_with_the_extra(load, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UserError, match=r"^GenEval's --score needs torch: pip install -e '\.\[text\]'$"
    ):
        load(epath.Path(tmp_path))


# With torch


@pytest.fixture
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.mark.text
def test_detector_input_is_resized_and_padded(torch):
    image = torch.full((100, 200, 3), 255, dtype=torch.uint8)
    pixels, inner = detection.detector_input(image)
    assert inner == (667, 1333)  # the limit on the long side decides
    assert pixels.shape == (1, 3, 672, 1344)
    white = (1 - np.array(detection.IMAGENET_MEAN)) / detection.IMAGENET_STD
    np.testing.assert_allclose(pixels[0, :, 666, 1332], white, rtol=1e-5)
    assert (pixels[:, :, 667:] == 0).all() and (pixels[..., 1333:] == 0).all()
    pixels, inner = detection.detector_input(image[:, :100])
    assert inner == (800, 800) and pixels.shape == (1, 3, 800, 800)


@pytest.mark.text
def test_objects_from_logits_match_a_computation_by_hand(torch):
    classes = torch.full((2, 4), -50.0)
    classes[0, 1] = classes[0, 2] = 3.0  # probability ½ bicycle, ½ car
    classes[1, 0] = classes[1, 3] = 3.0  # probability ½ person, ½ no object
    masks = torch.full((2, 8, 8), -4.0)
    masks[0, :4, :4] = 2.0
    masks[1] = 40.0
    found = detection.decode_objects(classes, masks, (32, 32), (32, 24), (64, 48))
    assert sorted(found) == ["bicycle", "car", "person"]
    person, car, bicycle = (found[name][0] for name in ("person", "car", "bicycle"))
    assert sum(one.score > 1e-9 for group in found.values() for one in group) == 3
    assert person.score == pytest.approx(0.5, rel=1e-4)
    np.testing.assert_array_equal(person.box, [0, 0, 48, 64])
    assert car.score == bicycle.score
    assert 0.5 * 0.5 < car.score < 0.5 * 0.88  # σ(2) = 0.88 inside the mask, less at its edge
    np.testing.assert_array_equal(car.box, [0, 0, car.mask.any(0).sum(), car.mask.any(1).sum()])
    assert car.mask.shape == (64, 48) and 28 <= car.box[2] <= 33


@pytest.mark.text
def test_empty_masks_are_dropped_and_at_most_100_objects_are_kept(torch):
    random = np.random.RandomState(0)
    classes = torch.tensor(random.randn(60, 81), dtype=torch.float32)
    masks = torch.tensor(random.randn(60, 4, 4), dtype=torch.float32)
    found = detection.decode_objects(classes, masks, (16, 16), (16, 16), (16, 16))
    assert sum(map(len, found.values())) == 100
    assert detection.decode_objects(classes, -masks.abs(), (16, 16), (16, 16), (16, 16)) == {}


def save_mask2former(transformers, folder, labels=80):
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        dim_feedforward=16, num_queries=10, num_labels=labels,
    )  # fmt: skip
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return epath.Path(folder)


def save_clip(transformers, folder):
    letters = [chr(code) for code in range(33, 127)]
    words = letters + [letter + "</w>" for letter in letters]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    last = len(vocabulary) - 1
    ends = dict(bos_token_id=last - 1, eos_token_id=last, pad_token_id=last)
    config = transformers.CLIPConfig(
        text_config=small | ends | dict(vocab_size=last + 1, max_position_embeddings=77),
        vision_config=small | dict(image_size=16, patch_size=4),
        projection_dim=8,
    )
    model = transformers.CLIPModel(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.normal_(std=0.5)  # large enough that colours differ
    model.save_pretrained(folder)
    return epath.Path(folder)


@pytest.mark.text
def test_detections_of_a_small_random_detector(torch, tmp_path):
    import transformers

    torch.manual_seed(0)
    detect = detection.load_detector(save_mask2former(transformers, tmp_path / "m"), "cpu")
    image = np.random.RandomState(0).randint(0, 256, (40, 56, 3), np.uint8)
    found = detect(image)
    assert found and set(found) <= set(detection.CLASSES)
    for one in (one for group in found.values() for one in group):
        assert one.mask.shape == (40, 56) and 0 <= one.score <= 1
        np.testing.assert_array_equal(one.box, detection.mask_box(one.mask))


@pytest.mark.text
def test_colours_equal_those_of_the_clip_forward_pass(torch, tmp_path):
    import transformers

    torch.manual_seed(0)
    folder = save_clip(transformers, tmp_path / "c")
    name_colours = detection.load_colour_classifier(folder, "cpu")
    model = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    image = np.random.RandomState(0).randint(0, 256, (40, 56, 3), np.uint8)
    group = [Detection(np.array([i, 2, i + 12, 30], np.float32), 1.0) for i in range(0, 40, 4)]
    pixels = torch.stack([
        torch.from_numpy(detection.colour_input(detection.crop(image, one), 16)) for one in group
    ])  # fmt: skip
    similarities = []
    for colour in COLOURS:
        texts = [f"a photo of a {colour} traffic light",
                 f"a photo of a {colour}-colored traffic light",
                 f"a photo of a {colour} object"]  # fmt: skip
        out = model(**tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=pixels)
        mean = out.text_embeds.mean(0)  # the forward pass normalises them
        similarities.append(out.image_embeds @ mean / mean.norm())
    expected = [COLOURS[i] for i in torch.stack(similarities, 1).argmax(1)]
    assert name_colours(image, group, "traffic light") == expected
    assert len(set(expected)) > 1


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 492265168\n"


@pytest.mark.text
def test_clip_folders_with_bad_files_are_refused(torch, tmp_path):
    import transformers
    from safetensors.numpy import load_file, save_file

    folder = save_clip(transformers, tmp_path / "c")
    weights = dict(load_file(folder / "model.safetensors"))
    key = "text_projection.weight"
    for change, match in (
        ({key: None}, f"{key} is missing"),
        ({"extra.weight": np.ones(2)}, "extra.weight isn't used"),
        ({key: weights[key] * np.nan}, rf"{key} has the value nan at \[0, 0\]"),
        ({key: weights[key][:4]}, r"has shape \[4, 16\], expected \[8, 16\]"),
    ):
        state = {name: a for name, a in (weights | change).items() if a is not None}
        save_file(state, folder / "model.safetensors")
        with pytest.raises(UserError, match=rf"\A[^\n]*CLIPModel: [^\n]*{match}[^\n]*\Z"):
            detection.load_colour_classifier(folder)
    indices = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    save_file(weights | indices, folder / "model.safetensors")
    detection.load_colour_classifier(folder, "cpu")
    for name in ("config.json", "vocab.json", "tokenizer_config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        for stand_in, match in ((b"", "is empty"), (POINTER, "run `git lfs pull` in")):
            (folder / name).write_bytes(stand_in)
            with pytest.raises(UserError, match=rf"\A[^\n]*{name}[^\n]*{match}[^\n]*\Z"):
                detection.load_colour_classifier(folder)
        (folder / name).write_bytes(content)
    # Torch's own file is read too, and checked, if there is no .safetensors file.
    torch.save(transformers.CLIPModel.from_pretrained(folder).state_dict(), folder / "w")
    (folder / "model.safetensors").unlink()
    (folder / "w").rename(folder / "pytorch_model.bin")
    detection.load_colour_classifier(folder, "cpu")
    content = (folder / "pytorch_model.bin").read_bytes()
    for stand_in, match in ((POINTER, "git lfs pull"), (content[: len(content) // 2], "is cut")):
        (folder / "pytorch_model.bin").write_bytes(stand_in)
        with pytest.raises(UserError, match=rf"\A[^\n]*pytorch_model.bin[^\n]*{match}[^\n]*\Z"):
            detection.load_colour_classifier(folder)


@pytest.mark.text
def test_folders_of_other_models_are_refused(torch, tmp_path):
    import transformers

    with pytest.raises(UserError, match="nowhere: has no config.json: name a folder"):
        detection.load_detector(epath.Path(tmp_path / "nowhere"))
    panoptic = save_mask2former(transformers, tmp_path / "m", labels=133)
    with pytest.raises(UserError, match="has 133 classes instead of COCO's 80"):
        detection.load_detector(panoptic)
    with pytest.raises(UserError, match=r"\A[^\n]*m: (isn't a CLIPModel|can't be read)[^\n]*\Z"):
        detection.load_colour_classifier(panoptic)
    clip = save_clip(transformers, tmp_path / "c")
    (clip / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"\A[^\n]*c: can't be read as CLIPModel: [^\n]+\Z"):
        detection.load_colour_classifier(clip)
