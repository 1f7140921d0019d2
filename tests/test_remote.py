"""Paths on object stores that can't be reached: one line, and what is supported."""

import re
import threading
import types

import pytest
from conftest import run_entry

from tp_jax.files import remote
from tp_jax.messages.errors import UserError


class RefusedError(Exception):
    """Stands for an exception of gcsfs."""


RefusedError.__module__ = "gcsfs.retry"


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(remote, "_has_client", lambda: True)


def answer(monkeypatch, act):
    monkeypatch.setattr(remote.epath, "Path", lambda path: types.SimpleNamespace(exists=act))


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda: fail(RefusedError("Anonymous caller\nmore")), r"\(Anonymous caller\): check the"),
        (lambda: fail(ConnectionError("no route")), r"\(no route\): check the network"),
        (lambda: fail(RefusedError()), r"\(RefusedError\)"),
        (threading.Event().wait, r"\(no answer within 0.1 s\)"),
    ],
)
def test_a_store_that_does_not_answer_is_named_with_what_to_check(
    act, match, installed, monkeypatch
):
    answer(monkeypatch, act)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.1)
    with pytest.raises(
        UserError, match=f"--workdir=gs://lab/run can't be reached {match}"
    ) as found:
        remote.check_answers("gs://lab/run", "--workdir")
    assert "\n" not in str(found.value) and "gcloud auth" in str(found.value)


@pytest.mark.parametrize("there", [True, False])
def test_a_store_that_answers_passes(there, installed, monkeypatch):
    answer(monkeypatch, lambda: there)
    remote.check_answers("gs://lab/run", "--workdir")


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setattr(remote, "_has_client", lambda: False)
    with pytest.raises(UserError, match=r"--out=gs://x: .* need gcsfs: pip install -e '\.\[gcs\]'"):
        remote.check_answers("gs://x", "--out")


def test_only_errors_of_a_store_are_taken_for_one():
    def wrapped():
        try:
            fail(RefusedError("403"))
        except RefusedError as error:
            raise OSError("could not list") from error

    with pytest.raises(OSError, match="could not list") as found:
        wrapped()
    assert "Google Cloud Storage failed (403)" in remote.store_error(found.value)
    assert remote.store_error(OSError("disk")) is None
    assert remote.store_error(ValueError("x")) is None


CONFIG = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--workdir=s3://b/run"], r"--workdir=s3://b/run: s3:// isn't supported: .*gs://BUCKET"),
        (["--workdir=az://b/run"], "az:// isn't supported.*mounted as folders"),
        (["--workdir=gs://b/run"], "--workdir=gs://b/run: .* pip install -e '..gcs.'"),
        (["--workdir=y", "--config.init.base=gs://b"], "--config.init.base=gs://b: .*need gcsfs"),
    ],
)
def test_every_path_of_a_command_is_checked_first(flags, match, monkeypatch):
    monkeypatch.setattr(remote, "_has_client", lambda: False)
    code, _, errors = run_entry("main", CONFIG, *flags)
    assert code == 2 and re.search(match, errors), errors


def test_a_store_that_fails_later_ends_the_command_in_one_line(monkeypatch):
    monkeypatch.setattr("tp_jax.train.loop.train", lambda *_, **__: fail(RefusedError("403")))
    code, _, errors = run_entry("main", CONFIG, "--workdir=y")
    assert code == 1
    assert errors.startswith("error: Google Cloud Storage failed (403): check the network")
