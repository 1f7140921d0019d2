"""`tp_jax.export --verify`, and checksums of earlier versions."""

import json
import shutil

import pytest
from conftest import run_entry
from etils import epath
from published_weights import convert, torch_state

from tp_jax.workdir.integrity import file_checksums, find_damage


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def verify(folder):
    return run_entry("export", "--verify", f"--workdir={folder}")


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def test_checkpoints_are_checked(workdir):
    code, _, stderr = verify(workdir)
    assert code == 0 and stderr == "checkpoint 3: as written\ncheckpoint 6: as written\n"
    file = largest(workdir / "checkpoints" / "6")
    spoil(file)
    (workdir / "checksums" / "3.json").write_text('{"pending": true}')
    code, _, stderr = verify(workdir)
    assert (
        code == 2
        and f"checkpoint 6: the checksum of {file.relative_to(workdir / 'checkpoints/6')}" in stderr
    )
    assert "checkpoint 3: it has no checksums" in stderr
    assert stderr.splitlines()[-1].startswith("error: 2 of 2 are not as written: checkpoint 3, ")


def test_checksums_of_earlier_versions_are_compared(workdir):
    folder, path = epath.Path(workdir / "checkpoints" / "6"), workdir / "checksums" / "6.json"
    assert all(len(sum) == 64 for _, sum in json.loads(path.read_text()).values())
    path.write_text(json.dumps(file_checksums(folder, crc32=True)))
    assert all(isinstance(sum, int) for _, sum in json.loads(path.read_text()).values())
    assert find_damage(epath.Path(workdir), 6, folder) is None
    spoil(largest(workdir / "checkpoints" / "6"))
    assert "the checksum of" in find_damage(epath.Path(workdir), 6, folder)


def test_exported_models_and_converted_folders_are_checked(trained, tmp_path):
    code, _, stderr = run_entry("export", f"--workdir={trained}", f"--out={tmp_path / 'model'}")
    assert code == 0, stderr
    code, _, stderr = verify(tmp_path / "model")
    assert code == 0 and "thinking.safetensors: as written" in stderr
    spoil(tmp_path / "model" / "thinking.safetensors")
    (tmp_path / "model" / "base.safetensors").unlink()
    code, _, stderr = verify(tmp_path / "model")
    assert code == 2 and "thinking.safetensors: its SHA-256 is wrong" in stderr
    assert "base.safetensors: missing" in stderr
    convert(tmp_path / "dit", torch_state("dit"), "dit", "--heads=4")
    code, _, stderr = verify(tmp_path / "dit" / "out")
    assert code == 0 and stderr == "weights of dit: as written\n"
    path = tmp_path / "dit" / "out" / "description.json"
    path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
    code, _, stderr = verify(tmp_path / "dit" / "out")
    assert code == 2 and "is damaged: its weights aren't those" in stderr


def test_other_folders_are_refused(tmp_path):
    code, _, stderr = verify(tmp_path)
    assert code == 2 and "has no checkpoints, and is neither an exported model" in stderr
    code, _, stderr = run_entry("export", f"--workdir={tmp_path}")
    assert code == 2 and "--out is missing" in stderr
