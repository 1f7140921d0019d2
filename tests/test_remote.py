"""Paths on object stores that can't be reached: one line, and what is supported."""

import sys
import threading
import types

import pytest

from tp_jax.files import remote
from tp_jax.messages.errors import UserError


class RefusedError(Exception):
    """Stands for an exception of gcsfs."""


RefusedError.__module__ = "gcsfs.retry"


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", types.ModuleType("gcsfs"))
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: name)


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
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--out=gs://x: .* need gcsfs: pip install 'tp_jax\[gcs\]'"
    ):
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
