"""Models on the Hugging Face Hub: hf://OWNER/NAME[@REVISION][/PATH], kept in the Hub's own cache.

huggingface_hub downloads them, reads the token of the user if there is one, and works offline with
HF_HUB_OFFLINE=1. Nothing is downloaded unless a flag or a config field names such a path.
"""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from etils import epath

from tp_jax.messages.errors import UserError, first_line
from tp_jax.messages.progress import say

HUB = "hf://"
UNREACHABLE = (
    "isn't in the cache, and the Hub can't be reached: check the network and HF_HUB_OFFLINE, or "
    "give a local folder"
)
_PARTS = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/+(.*))?")
# Local paths of what was downloaded -> the hf:// path, with the commit.
_ORIGINS: dict[str, str] = {}


def local(path: str | os.PathLike[str], *folders: str) -> epath.Path:
    """Return a path of this machine: other paths as they are, hf:// ones after downloading them.

    Args:
      path: a path.
      folders: if the repository has one of these folders, only they are downloaded.

    Raises:
      UserError: huggingface_hub isn't installed, or there is no such repository, revision or file,
        or it can't be reached and isn't in the cache.
    """
    text = os.fspath(path)
    return epath.Path(_download(text, folders) if text.startswith(HUB) else path)


def origin(path: epath.Path) -> str:
    """Return the hf:// path, with its commit, that a path was downloaded from; else its name."""
    return _ORIGINS.get(str(path), path.name)


@functools.cache
def _download(text: str, folders: tuple[str, ...]) -> str:
    found = _PARTS.fullmatch(text)
    if not found:
        raise UserError(f"{text}: write hf://OWNER/NAME, hf://OWNER/NAME@REVISION or …/PATH")
    name, revision, inside = found[1], found[2], (found[3] or "").rstrip("/")
    with errors_of_hub(text):
        from huggingface_hub import snapshot_download

        fetch = functools.partial(snapshot_download, name, revision=revision)
        if inside:
            root = fetch(allow_patterns=[inside, f"{inside}/*"])
        else:
            root = fetch(allow_patterns=[f"{folder}/*" for folder in folders]) if folders else None
            if root is None or not any((epath.Path(root) / folder).is_dir() for folder in folders):
                root = fetch()
    path = epath.Path(root) / inside if inside else epath.Path(root)
    if not path.exists():
        raise UserError(
            f"{text}: the repository has no {inside}; see https://huggingface.co/{name}"
        )
    commit = epath.Path(root).name
    _ORIGINS[str(path)] = f"{HUB}{name}@{commit}{'/' if inside else ''}{inside}"
    say(f"{text}: commit {commit[:12]}")
    return str(path)


@contextmanager
def errors_of_hub(text: str, unreachable: str = UNREACHABLE) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into a UserError that names `text`.

    Args:
      text: a path on the Hub.
      unreachable: what to say after `text` if the Hub doesn't answer.
    """
    try:
        import huggingface_hub.errors as hub
        from huggingface_hub.utils import HfHubHTTPError
    except ImportError as error:
        raise UserError(
            f"{text}: hf:// paths need {error.name}: pip install -e '.[hub]'"
        ) from error
    try:
        yield
    except hub.GatedRepoError as error:
        raise UserError(
            f"{text} is gated: accept its terms on its page, and log in with `hf auth login`"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise UserError(f"{text}: the repository has no such revision: check it") from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"{text}: there is no such repository, or it is private: check the name, or log in "
            f"with `hf auth login`"
        ) from error
    except hub.HFValidationError as error:
        raise UserError(f"{text}: {first_line(error)}") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"{text}: the Hub refused ({first_line(error)}): try again later"
        ) from error
    except (
        hub.LocalEntryNotFoundError,
        hub.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        ConnectionError,
        TimeoutError,
    ) as error:
        raise UserError(f"{text} {unreachable}") from error
