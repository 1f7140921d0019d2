"""Folders of images as data sets: what is a class, what is an image, what is left out."""

import dataclasses
import shutil

import pytest
from etils import epath
from PIL import Image

from tp_jax.data.prepare import start_folder
from tp_jax.data.sources.captions import open_captions
from tp_jax.data.sources.folder import open_folder
from tp_jax.data.sources.latents import LatentsPlan
from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError


def save(path, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, kind)


@pytest.fixture
def root(tmp_path):
    """Two classes of two images."""
    for name in ("cats", "dogs"):
        for i in range(2):
            save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def opened(root, split=""):
    source = open_folder(str(root), split, "config.data")
    files = [
        (str(epath.Path(path).relative_to(root)), label) for path, label in source.records.files
    ]
    return source.class_names, files


FILES = [("cats/0.png", 0), ("cats/1.png", 0), ("dogs/0.png", 1), ("dogs/1.png", 1)]
SYSTEM_FOLDERS = (
    ".ipynb_checkpoints", ".thumbnails", "@eaDir", "#recycle", "lost+found", "__MACOSX",
    "$RECYCLE.BIN", "System Volume Information", "@Recycle", "__pycache__",
    "RECYCLER", "@Recently-Snapshot", "~snapshot", "Network Trash Folder", "Temporary Items",
)  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
@pytest.mark.parametrize("filled", [False, True])
def test_system_folders_are_no_classes(name, filled, root, capsys):
    (root / name).mkdir()
    (root / "cats" / name).mkdir()
    if filled:
        save(root / name / "0.png")
    assert opened(root) == (("cats", "dogs"), FILES)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._.DS_Store"])
def test_system_files_are_ignored(name, root, capsys):
    for folder in (root, root / "cats"):
        (folder / name).write_text("x")
    assert opened(root) == (("cats", "dogs"), FILES)
    assert capsys.readouterr().err == ""


def test_what_is_left_out_is_counted_and_named(root, capsys):
    (root / "labels.csv").write_text("x")
    (root / "cats" / "._0.png").write_bytes(b"resource fork")
    (root / "dogs" / "2.HEIC").write_bytes(b"x")
    (root / "dogs" / "3.mp4").write_bytes(b"x")
    assert opened(root) == (("cats", "dogs"), FILES)
    counted = "warning: 4 files (.csv 1, .heic 1, .mp4 1, .png 1) in "
    warning = capsys.readouterr().err
    assert warning == f"{counted}{root} left out, such as {root}/labels.csv\n"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ((), r"has class folders without images: 'birds' \(empty\); add"),
        (("0.heic", "1.txt"), r"'birds' \(only 2 files \(.heic 1, .txt 1\)\)"),
        (("._0.png",), r"'birds' \(only 1 file \(.png 1\)\)"),
        (("young/0.txt",), r"'birds' \(only 1 file \(.txt 1\)\).* if the folders are splits"),
        ((".DS_Store",), r"'birds' \(empty\)"),
    ],
)
def test_classes_without_images_are_refused_by_name(content, match, root):
    (root / "birds").mkdir()
    for name in content:
        save(root / "birds" / name)
    with pytest.raises(UserError, match=match):
        opened(root)


def test_folders_in_a_class_folder_belong_to_the_class(root):
    """As in torchvision's ImageFolder."""
    for name in ("birds/young/small/0.png", "birds/1.png", "birds/@eaDir/2.png"):
        save(root / name)
    classes, files = opened(root)
    assert classes == ("birds", "cats", "dogs")
    assert files[:2] == [("birds/1.png", 0), ("birds/young/small/0.png", 0)]


def test_splits_are_no_classes(root):
    for name in ("train", "val", "others"):
        shutil.copytree(root, root.parent / "both" / name)
    both = root.parent / "both"
    with pytest.raises(UserError, match=r"such as splits: others, train, val; name one of them in"):
        opened(both, "nothing")
    assert opened(both, "val")[0] == ("cats", "dogs")
    # Without a split they are classes, unless all are named as splits.
    assert opened(both)[0] == ("others", "train", "val")
    shutil.rmtree(both / "others")
    with pytest.raises(UserError, match="such as splits: train, val"):
        opened(both)
    save(both / "train" / "0.png")
    assert opened(both)[0] == ("train", "val")


def test_a_broken_link_is_refused_and_a_link_is_followed(root, tmp_path):
    shutil.copytree(root / "dogs", tmp_path / "elsewhere")
    (root / "wolves").symlink_to(tmp_path / "elsewhere")
    classes, files = opened(root)
    assert classes == ("cats", "dogs", "wolves") and files[4:] == [
        ("wolves/0.png", 2),
        ("wolves/1.png", 2),
    ]
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="wolves is a link to what doesn't exist: repair or remove"):
        opened(root)


@pytest.mark.parametrize("ending", ["JPG", "jpeg", "jfif", "TIF", "tiff", "gif", "bmp", "webp"])
def test_images_are_found_by_their_endings(ending, root):
    kind = {"jpg": "jpeg", "jfif": "jpeg", "tif": "tiff"}.get(ending.lower(), ending)
    save(root / "dogs" / f"2.{ending}", kind)
    assert opened(root)[1] == [*FILES, (f"dogs/2.{ending}", 1)]
    source = open_folder(str(root), "", "config.data")
    assert source.decoder(8, False)(source.records[4], None)["x"].shape == (8, 8, 3)


def test_classes_with_similar_names_are_warned_of(root, capsys):
    save(root / "Dogs" / "0.png")
    assert opened(root)[0] == ("Dogs", "cats", "dogs")
    assert "folders with similar names: Dogs, dogs" in capsys.readouterr().err


def test_a_class_with_the_name_of_the_split_is_said(root, capsys):
    save(root / "train" / "0.png")
    source = open_folder(str(root), "train", "config.data")
    assert source.class_names == ()
    assert "has no class folders, for config.data.split='train'; not read: cats, dogs\n" in (
        capsys.readouterr().err
    )
    assert opened(root)[0] == ("cats", "dogs", "train")


def test_the_split_is_a_folder_beside_others(root):
    shutil.copytree(root, root.parent / "splits" / "train")
    save(root.parent / "splits" / "val" / "cats" / "0.png")
    assert opened(root.parent / "splits", "train")[0] == ("cats", "dogs")
    with pytest.raises(UserError, match="only folders of folders, such as splits: train, val;"):
        opened(root.parent / "splits")


def test_hidden_files_need_no_caption_and_others_are_named(root, capsys):
    folder = root / "cats"
    lines = [f'{{"file": "{i}.png", "caption": "a cat"}}\n' for i in range(2)]
    (folder / "captions.jsonl").write_text("".join(lines))
    (folder / "._0.png").write_bytes(b"resource fork")
    (folder / ".DS_Store").write_bytes(b"x")
    assert len(open_captions(str(folder), "", "config.data").records) == 2
    assert capsys.readouterr().err == ""
    (folder / "2.heic").write_bytes(b"x")
    open_captions(str(folder), "", "config.data")
    assert "1 file (.heic 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("a", "b"), "class_names was 3 classes with c, now 2 classes;"),
        (("a", "b", "c", "d"), "class_names was 3 classes, now 4 classes with d;"),
        (("a", "b", "C"), "class_names was 3 classes with c, now 3 classes with C;"),
        (("b", "a", "c"), "class_names was .'a', 'b', 'c'., now .'b', 'a', 'c'.;"),
    ],
)
def test_preparation_does_not_resume_with_other_classes(names, match, tmp_path):
    space = LatentSpace("identity", 4, 1.0, 0.0)
    plan = LatentsPlan("folder", "", 3, ("a", "b", "c"), 64, space, "float32", 0, 10, False)
    folder = epath.Path(tmp_path / "new")
    start_folder(folder, plan)
    start_folder(folder, plan)
    with pytest.raises(UserError, match=match):
        start_folder(folder, dataclasses.replace(plan, class_names=names))
