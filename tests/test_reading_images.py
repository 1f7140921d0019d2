"""Reading images from .npz files and folders of PNGs, a few images at a time."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from etils import epath
from feature_formula import image
from PIL import Image
from stand_in_extractor import random_images, save_npz, save_pngs

from tp_jax.messages.errors import UserError
from tp_jax.pictures.reading import open_images, read_rgb


def read(path, rows=4, count=None):
    found = open_images(epath.Path(path))
    return np.concatenate(list(found.batches(rows, count or found.count)))


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_read_in_blocks(compressed, tmp_path):
    images = random_images(11)
    path = save_npz(tmp_path / "a.npz", compressed, arr_1=np.arange(11), arr_0=images)
    np.testing.assert_array_equal(read(path), images)
    np.testing.assert_array_equal(read(path, count=5), images[:5])
    assert open_images(path).count == 11 and open_images(path).size == (16, 16)
    assert [len(batch) for batch in open_images(path).batches(4, 11)] == [4, 4, 3]
    assert [len(batch) for batch in open_images(path).batches(4, 8)] == [4, 4]


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_never_in_memory_as_a_whole(compressed, tmp_path):
    path = save_npz(tmp_path / "a.npz", compressed, arr_0=np.zeros((2000, 64, 64, 3), np.uint8))
    tracemalloc.start()
    for _ in open_images(path).batches(16, 2000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6  # bytes; the whole array has 24.6e6


def test_greyscale_images_are_read_as_three_equal_channels(tmp_path):
    images = random_images(3, channels=1)
    path = save_npz(tmp_path / "a.npz", arr_0=images)
    np.testing.assert_array_equal(read(path), images.repeat(3, axis=-1))
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path), images[:1].repeat(3, axis=-1))


def test_a_folder_is_read_in_the_order_of_names_and_without_its_grid(tmp_path):
    images = random_images(6)
    folder = save_pngs(tmp_path / "a", images)
    Image.fromarray(image(90, 90)).save(folder / "grid.png")
    (folder / "notes.txt").touch()
    np.testing.assert_array_equal(read(folder), images)


def test_files_without_valid_images_are_refused(tmp_path):
    def check(match, **arrays):
        with pytest.raises(UserError, match=match):
            open_images(save_npz(tmp_path / "a.npz", **arrays))

    images = random_images(3)
    check("a.npz has no array arr_0, only images.npy: name", images=images)
    check(r"arr_0 is float32 \[3, 16, 16, 3\], but images must be", arr_0=np.float32(images))
    check(r"arr_0 is uint8 \[3, 16, 16, 4\], but", arr_0=images.repeat(2, axis=-1)[..., :4])
    check(r"arr_0 is uint8 \[16, 16, 3\], but", arr_0=images[0])
    check(r"arr_0 is object \[1\], but", arr_0=np.array([None]))
    check("in Fortran order, but", arr_0=np.asfortranarray(images))
    check(r"arr_0 has no images: its shape is \[0, 16, 16, 3\]", arr_0=images[:0])
    with pytest.raises(UserError, match="no such file or folder; name"):
        open_images(epath.Path(tmp_path / "b"))
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="has no PNGs .*name another"):
        open_images(epath.Path(tmp_path / "b"))


def test_a_truncated_npz_is_refused(tmp_path):
    path = save_npz(tmp_path / "a.npz", arr_0=random_images(20))
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(UserError, match=r"a.npz can't be read as an npz file \(.*truncated"):
        open_images(path)


def test_a_truncated_array_is_refused_and_the_row_named(tmp_path):
    np.save(tmp_path / "arr_0.npy", random_images(20))
    data = (tmp_path / "arr_0.npy").read_bytes()[: 128 + 768 * 13 + 5]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", data)
    with pytest.raises(UserError, match="arr_0 ends in row 13 of 20: write it again"):
        open_images(epath.Path(tmp_path / "a.npz"))


@pytest.mark.parametrize("compressed", [False, True])
def test_the_row_of_damaged_data_is_named(compressed, tmp_path):
    path = save_npz(tmp_path / "a.npz", compressed, arr_0=random_images(20))
    data = bytearray(path.read_bytes())
    middle = len(data) * 2 // 5
    data[middle : middle + 40] = bytes(255 - byte for byte in data[middle : middle + 40])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a.npz: arr_0 is damaged at or before row (11|15|19) \("):
        read(path)


def test_upright_applies_the_exif_orientation(tmp_path):
    path, exif = epath.Path(tmp_path / "a.png"), Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90° for display
    Image.fromarray(image(8, 16)).save(path, exif=exif)
    assert read_rgb(path).shape == (8, 16, 3)
    np.testing.assert_array_equal(read_rgb(path, upright=True), np.rot90(read_rgb(path), -1))


def test_damaged_or_mismatched_pngs_are_refused(tmp_path):
    folder = save_pngs(tmp_path / "a", random_images(3))
    whole = (folder / "00001.png").read_bytes()
    (folder / "00001.png").write_bytes(whole[:300])
    with pytest.raises(UserError, match=r"00001.png can't be read as an image .*write it again"):
        read(folder)
    (folder / "00001.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"00001.png can't be read as an image"):
        open_images(folder)
    Image.fromarray(image(16, 8)).save(folder / "00001.png")
    with pytest.raises(UserError, match="00001.png is 8×16, but the first image .* is 16×16"):
        open_images(folder)
    Image.fromarray(random_images(1)[0]).convert("RGBA").save(folder / "00001.png")
    with pytest.raises(UserError, match="00001.png has mode RGBA: save 8-bit RGB or grey"):
        open_images(folder)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], None),
        (["grid.png", "captions.jsonl", ".DS_Store", "._00000.png", ".cache/"], None),
        (["a.jpg", "b.JPG", "c.webp"], "3 files (.jpg 2, .webp 1)"),
        (["notes", "a.tiff"], "2 files (.tiff 1, no ending 1)"),
        (["more/", "b.gif"], "1 file (.gif 1), 1 folder"),
    ],
)
def test_what_a_folder_of_images_leaves_out_is_said(others, said, tmp_path, capsys):
    folder = save_pngs(tmp_path / "a", random_images(3))
    (folder / "00002.png").rename(folder / "00002.PNG")
    for name in others:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    assert open_images(folder).count == 3
    line = capsys.readouterr().err
    assert line.startswith(f"{folder}: 3 images") and line.count("\n") == 1
    assert line.partition("; left out: ")[2].strip() == (said or "")


def test_a_folder_without_pngs_says_what_it_has(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match=r"has no PNGs, only 1 file \(.jpg 1\), 1 folder: name"):
        open_images(epath.Path(tmp_path))


def test_the_images_of_a_described_folder_are_those_that_it_names(tmp_path, capsys):
    images = random_images(4)
    folder = save_pngs(tmp_path / "a", images)
    (folder / "drawing.json").write_text(json.dumps({"files": ["00002.png", "00000.png"]}))
    np.testing.assert_array_equal(read(folder), images[[0, 2]])
    assert "2 images; left out: 2 files (.png 2)\n" in capsys.readouterr().err
    (folder / "drawing (1).json").write_text(json.dumps({"files": ["00001.png"]}))
    with pytest.raises(UserError, match=r"several descriptions \(drawing \(1\).json, drawing.json"):
        open_images(folder)
    # Without a list of files it is a file of another program.
    (folder / "drawing (1).json").write_text("{}")
    assert open_images(folder).count == 2
    (folder / "00002.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 samples, such as 00002.png: run the comm"):
        open_images(folder)
