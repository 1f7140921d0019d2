"""Upload an exported model to the Hugging Face Hub."""

import re

from etils import epath

from tp_jax.files.hub import HUB, errors_of_hub
from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.messages.progress import say

CARD = "README.md"


def check_push(name: str, license: str, scores: str | None) -> None:
    """Check before any work that a model can be uploaded.

    Args:
      name: OWNER/NAME.
      license: for the model card.
      scores: for the model card; None if they weren't given.

    Raises:
      UserError: the name isn't one, nobody is logged in, or the card would lack something.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push={name}: give OWNER/NAME, a model repository on the Hub")
    if not license:
        raise UserError(
            "--push writes a model card: name the license of the weights with --license, such as "
            "apache-2.0; it must be compatible with that of the base"
        )
    if scores is None:
        raise UserError(
            "--push writes a model card: name its scores with --scores=DIR/scores.json, as "
            "tp_jax.evaluate writes them, or publish it without by --scores="
        )
    with errors_of_hub(HUB + name):
        from huggingface_hub import get_token
    if not get_token():
        raise UserError(f"--push={name} needs a token: log in with `hf auth login`")


def push(folder: epath.Path, name: str, *, private: bool) -> None:
    """Upload all files of a folder in one commit, and create the repository if it doesn't exist.

    Raises:
      TrainingError: the upload failed; the folder stays.
    """
    try:
        with errors_of_hub(HUB + name, "can't be reached: check the network and HF_HUB_OFFLINE"):
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name, folder_path=str(folder), commit_message="Export from tp_jax"
            )
    except UserError as error:
        raise TrainingError(
            f"{folder} is complete, but wasn't uploaded: {error}; then run "
            f"`hf upload {name} {folder}`"
        ) from error
    say(f"uploaded to {HUB}{name}, commit {commit.oid[:12]}")
