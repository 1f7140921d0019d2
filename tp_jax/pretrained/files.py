"""Read files and folders of torch weights as dictionaries of NumPy arrays."""

import argparse
import json
import math
import mmap
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from tp_jax.messages.errors import UserError

# Keys of the weights in the checkpoints of training scripts; the moving average comes first.
WEIGHT_KEYS = ("ema", "state_dict", "model")
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    # Only in text encoders, which some checkpoints contain and the converters skip.
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
}
SHARD_NAME = r".*-\d+-of-\d+\.safetensors"


def load_state_dict(path: epath.Path, subfolder: str = "") -> dict[str, np.ndarray]:
    """Load torch weights from a file, from shards with an index, or from a folder of either.

    If the file is the checkpoint of a training script, the weights are taken from its key "ema",
    "state_dict" or "model". Arrays of local .safetensors files are memory-mapped. Torch's own
    files give float32 for every floating dtype.

    Args:
      path: a .safetensors, .pt, .pth, .ckpt or .bin file, diffusers' index (a .json file), or a
        folder with one .safetensors file or index.
      subfolder: subfolder of the model in a diffusers repository; ignored if `path` doesn't have
        it.

    Returns:
      The arrays by name, in torch's layout; bfloat16 is ml_dtypes.bfloat16.

    Raises:
      UserError: the file doesn't exist, is incomplete or can't be read, or torch is needed but not
        installed.
    """
    if not path.exists():
        raise UserError(f"--source={path}: there is no such file")
    if path.is_dir():
        has_subfolder = subfolder and (path / subfolder).is_dir()
        path = _find_weights(path / subfolder if has_subfolder else path)
    readers = {".safetensors": _load_safetensors, ".json": _load_index}
    readers |= dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _load_torch)
    if path.suffix not in readers:
        raise UserError(
            f"--source={path}: give a .safetensors, .pt, .pth, .ckpt or .bin file, or a folder "
            f"or index of .safetensors files"
        )
    if re.fullmatch(SHARD_NAME, path.name):
        raise UserError(f"--source={path} is one of several shards: give the folder or the index")
    try:
        return readers[path.suffix](path)
    except ImportError as error:
        raise UserError(
            f"--source={path} needs {error.name}: pip install -e '.[convert]'"
        ) from error


def _find_weights(folder: epath.Path) -> epath.Path:
    """Return the index of a folder, or its single .safetensors file."""
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if re.fullmatch(r".*\.safetensors\.index(\..+)?\.json", name)]
    whole = [name for name in names if name.endswith(".safetensors")]
    found += [name for name in whole if not re.fullmatch(SHARD_NAME, name)]
    if not found:
        problem = "has shards but no index" if whole else "has no .safetensors file or index"
        raise UserError(
            f"--source={folder} {problem}: give a folder that has one, or a file of weights"
        )
    if len(found) > 1:
        raise UserError(f"--source={folder} has {', '.join(found[:4])}: give one of these files")
    return folder / found[0]


def _load_index(path: epath.Path) -> dict[str, np.ndarray]:
    """Load all shards of diffusers' index, and check them against the index."""
    try:
        shards = json.loads(path.read_text())["weight_map"]
        names = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--source={path} isn't an index of .safetensors files") from error
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        raise UserError(
            f"--source={path}: {len(missing)} of {len(names)} shards are missing, the first is "
            f"{missing[0]}: download them into the same folder"
        )
    state = {}
    for name in names:
        shard = _load_safetensors(path.parent / name)
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


def _load_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    """Read a .safetensors file; a local one is memory-mapped.

    The format is described in github.com/huggingface/safetensors.
    """
    try:
        data = _memory_map(path)
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:start])) if start <= len(data) else None
        if not isinstance(header, dict):
            raise ValueError("its header is incomplete")
        header.pop("__metadata__", None)
        return {key: _tensor_view(key, entry, data[start:]) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--source={path} is damaged or isn't a .safetensors file: {error}"
        ) from error


def _memory_map(path: epath.Path) -> memoryview:
    if "://" in str(path):
        return memoryview(path.read_bytes())
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _tensor_view(key: str, entry: Mapping[str, Any], data: memoryview) -> np.ndarray:
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise ValueError(f"{key} has the unsupported dtype {entry['dtype']}")
    dtype, shape = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]]), entry["shape"]
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= len(data) or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the data of {key} is incomplete")
    return np.frombuffer(data[first:last], dtype).reshape(shape)


def _load_torch(path: epath.Path) -> dict[str, np.ndarray]:
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
    nested = [
        name for name in WEIGHT_KEYS if isinstance(state, Mapping) and _is_nested(state, name)
    ]
    state = state[nested[0]] if nested else state
    tensors = isinstance(state, Mapping) and all(map(torch.is_tensor, state.values()))
    if not tensors:
        raise UserError(f"--source={path} contains no state dict: give a file of weights")
    return {key: _to_numpy(tensor) for key, tensor in state.items()}


def _is_nested(state: Mapping[str, Any], name: str) -> bool:
    return isinstance(state.get(name), Mapping)


def _to_numpy(tensor: Any) -> np.ndarray:
    # torch can't convert bfloat16 to NumPy, so convert to float32 first.
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
