"""Features of images don't depend on batch size, devices and processes."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_in_extractor import (
    WIDTHS,
    make_extractor,
    network,
    random_images,
)

from tp_jax.evals.adm.features import PROTOCOLS, rebatch
from tp_jax.messages.errors import UserError


def test_features_do_not_depend_on_the_batch_sizes(extractor):
    images = random_images(21)
    whole = network(extractor.params, PROTOCOLS["adm"].prepare(jnp.asarray(images)))
    parts = list(extractor.batches([images[:3], images[3:20], images[20:]]))
    assert [len(part.pool) for part in parts] == [8, 8, 5]
    for name in WIDTHS:
        found = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(found, getattr(whole, name), rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_number_of_devices(extractor, one_device):
    assert extractor.mesh.size == 4
    images = random_images(10)
    alone = make_extractor(one_device, batch_size=5)
    found, expected = (
        np.concatenate([part.pool for part in which.batches([images])])
        for which in (extractor, alone)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_batch_is_sharded_over_the_devices(extractor):
    images = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.uint8)
    inputs, _ = extractor._run.lower(extractor.params, images).compile().input_shardings
    assert inputs[1].shard_shape((8, 16, 16, 3)) == (2, 16, 16, 3)


@pytest.mark.slow
def test_each_of_two_processes_gets_all_features(extractor, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    tests = pathlib.Path(__file__).parent
    search = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    outs = [tmp_path / f"{index}.npy" for index in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "import sys, stand_in_extractor as t; t.extract_as_process("
             "int(sys.argv[1]), *sys.argv[2:])", str(index), str(port), str(out)],
            env=os.environ | {"PYTHONPATH": search},
        )
        for index, out in enumerate(outs)
    ]  # fmt: skip
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    expected = np.concatenate([part.pool for part in extractor.batches([random_images(21)])])
    for out in outs:
        np.testing.assert_allclose(np.load(out), expected, rtol=1e-5, atol=1e-5)


def test_rebatch_keeps_the_order():
    parts = np.split(np.arange(23), [1, 2, 15, 15])
    assert [list(part) for part in rebatch(parts, 6)] == [
        list(range(start, min(start + 6, 23))) for start in range(0, 23, 6)
    ]
    assert list(rebatch([], 6)) == []


def test_unknown_protocols_and_wrong_batch_sizes_are_refused():
    with pytest.raises(UserError, match="protocol 'tf' is unknown: choose one of adm, pytorch-fid"):
        make_extractor(protocol="tf")
    with pytest.raises(UserError, match="batch_size=6 does not divide .* a multiple of 4"):
        make_extractor(batch_size=6)
