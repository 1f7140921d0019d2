"""The full recipe for ImageNet with the commands of the README, killed and resumed on the way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fake_imagenet import make_autoencoder, make_fake_imagenet
from golden.seeded import seeded_weights
from published_weights import torch_state
from safetensors.numpy import save_file
from virtual_devices import xla_flags

from tp_jax.models.layers import position_embedding

ROOT = pathlib.Path(__file__).parents[1]
DEPTH, WIDTH, SIDE = 4, 64, 8  # model of configs/imagenet256.py:debug


def dit_weights():
    """A state dict with the key names of facebookresearch/DiT, for the model of the config."""
    block = {
        "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH), "adaLN_modulation.1": (6 * WIDTH, WIDTH),
    }  # fmt: skip
    layers = {
        "x_embedder.proj": (WIDTH, 4, 2, 2),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        **{f"blocks.{i}.{name}": shape for i in range(DEPTH) for name, shape in block.items()},
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
        "final_layer.linear": (2 * 2 * 8, WIDTH),
    }
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes["y_embedder.embedding_table.weight"] = (1001, WIDTH)
    side = np.arange(SIDE // 2)
    return seeded_weights(shapes, 0) | {"pos_embed": position_embedding(WIDTH, side, side)[None]}


class Shell:
    """Runs commands of tp_jax as processes in a folder."""

    def __init__(self, folder):
        self.folder, self._log = folder, folder / "log"
        own = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(devices=1)}
        self._environment = os.environ | own

    def start(self, module, *flags):
        with self._log.open("w") as log:
            command = [sys.executable, "-m", f"tp_jax.{module}", *map(str, flags)]
            return subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=log, stderr=log
            )

    def run(self, module, *flags):
        assert self.start(module, *flags).wait(timeout=900) == 0, self._log.read_text()
        return self._log.read_text()

    def kill_when(self, event, module, *flags):
        """Start a command and send SIGKILL when `event()` is true; fail if it ended before."""
        process, deadline = self.start(module, *flags), time.monotonic() + 600
        while not event() and process.poll() is None:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, self._log.read_text()

    def convert(self, kind, state, *flags):
        state = {name: np.ascontiguousarray(array) for name, array in state.items()}
        save_file(state, self.folder / f"{kind}.safetensors")
        source, out = f"--source={kind}.safetensors", f"--out={kind}"
        self.run("convert", f"--kind={kind}", source, out, *flags)


def shards(folder):
    """Contents of the shards of prepared latents, by file name."""
    return {file.name: file.read_bytes() for file in folder.glob("*.arrayrecord")}


@pytest.mark.slow
def test_from_raw_images_to_a_score(tmp_path):
    shell = Shell(tmp_path)
    make_fake_imagenet(tmp_path / "tfds")
    make_autoencoder(tmp_path / "vae")
    shell.convert("dit", dit_weights(), "--heads=4")
    shell.convert("inception", torch_state("inception"))

    config = [
        f"--config={ROOT}/configs/imagenet256.py:debug",
        f"--config.prepare.dir={tmp_path / 'tfds'}", "--config.prepare.records_per_shard=5",
        "--config.prepare.batch_size=4", "--config.autoencoder.path=vae",
    ]  # fmt: skip
    latents = tmp_path / "latents"
    shell.kill_when(
        lambda: len(list(latents.glob("*.arrayrecord"))) >= 2,
        "prepare", *config, "--workdir=latents",
    )  # fmt: skip
    assert 0 < len(shards(latents)) < 5 and not (latents / "header.json").exists()
    shell.run("prepare", *config, "--workdir=latents")
    shell.run("prepare", *config, "--workdir=again")
    assert shards(latents) == shards(tmp_path / "again") and len(shards(latents)) == 5

    training = [
        *config, "--config.data.source=latents", "--config.data.dir=latents",
        "--config.init.base=dit", "--config.train.trainable=thinking",
        "--config.train.batch_size=8", "--config.checkpoint.every_steps=2",
    ]  # fmt: skip
    checkpoints = tmp_path / "run" / "checkpoints"
    shell.kill_when(lambda: (checkpoints / "4").exists(), "main", *training, "--workdir=run")
    log = shell.run("main", *training, "--workdir=run")
    assert "resuming from the checkpoint of train step" in log and "done: 20 train steps" in log

    sample = ["--workdir=run", "--num=40", "--batch_size=8", "--guidance_channels=4"]
    shell.run("sample", *sample, "--out=samples.npz")
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (40, 64, 64, 3) and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_1"], np.arange(40))
        assert len(np.unique(file["arr_0"].reshape(40, -1), axis=0)) == 40

    evaluate = ["--inception=inception", "--batch_size=8"]
    shell.run("evaluate", "--samples=samples.npz", "--save_statistics=own.npz", *evaluate)
    for reference in ("own.npz", "samples.npz"):
        files = ["--samples=samples.npz", f"--reference={reference}", "--out=scores.json"]
        log = shell.run("evaluate", *files, *evaluate)
        assert "fid" in log and "protocol        adm" in log
        scores = json.loads((tmp_path / "scores.json").read_text())
        # The samples are compared with themselves.
        assert abs(scores["fid"]) < 1e-3 and scores["precision"] == scores["recall"] == 1
        assert scores["inception_score"] > 1 and scores["count"] == 40
