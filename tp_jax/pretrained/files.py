"""Read files and folders of torch weights as dictionaries of NumPy arrays."""

import argparse
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from tp_jax.files.downloads import TORCH_SUFFIXES, check_download, read_downloaded_json
from tp_jax.files.safetensors import read_safetensors
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.pretrained.nested import find_weights

SHARD_NAME = r".*-\d+-of-\d+\.(safetensors|bin)"


def load_state_dict(path: epath.Path, note: Callable[[str], None] = say) -> dict[str, np.ndarray]:
    """Load torch weights from a file, or from shards with an index.

    If the file is the checkpoint of a training script, the weights are those of its moving average
    if there is one, else those of the model. Arrays of local .safetensors files are memory-mapped.
    Torch's own files give float32 for every floating dtype.

    Args:
      path: a file that `find_file` returns.
      note: called with what was read if the file holds more than the weights.

    Returns:
      The arrays by name, in torch's layout; bfloat16 is ml_dtypes.bfloat16.

    Raises:
      UserError: the file is incomplete or can't be read, or torch is needed but not installed.
    """
    try:
        if path.suffix in TORCH_SUFFIXES:
            return _load_torch(path, note)
        check_download(path)
        return _load_index(path, note) if path.suffix == ".json" else read_safetensors(path)
    except ImportError as error:
        raise UserError(
            f"--source={path} needs {error.name}: pip install -e '.[convert]'"
        ) from error


def find_file(path: epath.Path, subfolder: str = "") -> epath.Path:
    """Return the file that holds the weights, or the index of their shards.

    Args:
      path: a .safetensors, .pt, .pth, .ckpt or .bin file, diffusers' index (a .json file), or a
        folder with one .safetensors file or index.
      subfolder: subfolder of the model in a diffusers repository; ignored if `path` doesn't have
        it.

    Raises:
      UserError: there is no such file, or the folder has none or several.
    """
    if not path.exists():
        raise UserError(f"--source={path}: there is no such file")
    if path.is_dir():
        has_subfolder = subfolder and (path / subfolder).is_dir()
        path = _find_in(path / subfolder if has_subfolder else path)
    if path.suffix not in (".safetensors", ".json", *TORCH_SUFFIXES):
        raise UserError(
            f"--source={path}: give a .safetensors, .pt, .pth, .ckpt or .bin file, or a folder "
            f"or index of .safetensors or .bin files"
        )
    if re.fullmatch(SHARD_NAME, path.name):
        raise UserError(f"--source={path} is one of several shards: give the folder or the index")
    return path


def _find_in(folder: epath.Path) -> epath.Path:
    """Return the index of a folder, or its single .safetensors file; without any, of .bin files."""
    names = sorted(path.name for path in folder.iterdir())
    for ending in ("safetensors", "bin"):
        index = rf".*\.{ending}\.index(\..+)?\.json"
        found = [name for name in names if re.fullmatch(index, name)]
        whole = [name for name in names if name.endswith(f".{ending}")]
        found += [name for name in whole if not re.fullmatch(SHARD_NAME, name)]
        if found or whole:
            break
    if not found and "description.json" in names:
        raise UserError(f"--source={folder} was already written by tp_jax.convert: use it as it is")
    if not found:
        problem = "has shards but no index" if whole else "has no .safetensors or .bin file"
        raise UserError(
            f"--source={folder} {problem}: give a folder that has one, or a file of weights"
        )
    if len(found) > 1:
        raise UserError(f"--source={folder} has {', '.join(found[:4])}: give one of these files")
    return folder / found[0]


def _load_index(path: epath.Path, note: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Load all shards of diffusers' index, and check them against the index."""
    try:
        shards = read_downloaded_json(path)["weight_map"]
        names = sorted(set(shards.values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--source={path} isn't an index of files of weights") from error
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        raise UserError(
            f"--source={path}: {len(missing)} of {len(names)} shards are missing, the first is "
            f"{missing[0]}: download them into the same folder"
        )
    state = {}
    for name in names:
        check_download(path.parent / name)
        file = path.parent / name
        shard = _load_torch(file, note) if name.endswith(".bin") else read_safetensors(file)
        wanted = {key for key, shard_name in shards.items() if shard_name == name}
        for key in sorted(wanted ^ shard.keys()):
            problem = (
                "lacks" if key in wanted else "has a weight that the index doesn't list there,"
            )
            raise UserError(
                f"--source={path}: the shard {name} {problem} {key}: it belongs to another model "
                f"or version; download all files again"
            )
        state |= shard
    return state


def _load_torch(path: epath.Path, note: Callable[[str], None]) -> dict[str, np.ndarray]:
    check_download(path)  # before torch, which may not be installed
    import torch

    try:
        # The checkpoints of DiT's training script also contain its arguments, a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler may raise anything.
        raise UserError(
            f"--source={path} is damaged, or contains pickled objects that aren't safe to load: "
            f"download it again, or use a .safetensors file of the same weights"
        ) from error
    found = find_weights(state, torch.is_tensor, f"--source={path}", note)
    return {key: _to_numpy(tensor) for key, tensor in found.items()}


def _to_numpy(tensor: Any) -> np.ndarray:
    # torch can't convert bfloat16 to NumPy, so convert to float32 first.
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
