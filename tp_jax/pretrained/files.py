"""Files of torch weights, and folders of them, as dictionaries of NumPy arrays."""

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

# Where training scripts keep the weights in their checkpoints; averaged ones first.
NESTED = ("ema", "state_dict", "model")
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    # Of text encoders beside the weights that are read.
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
}
SHARD = r".*-\d+-of-\d+\.safetensors"


def load_state_dict(path: epath.Path, part: str = "") -> dict[str, np.ndarray]:
    """The weights of a file, of the shards that an index names, or of a folder that has either.

    Of a training script's checkpoint, {"ema": …}, {"state_dict": …} or {"model": …}, that part
    is taken; bfloat16 comes as ml_dtypes.bfloat16, but from torch's own files as float32. Arrays
    of local .safetensors files are views of the files, read when they are used.

    Args:
      path: a .safetensors, .pt, .pth, .ckpt or .bin file, diffusers' index (a .json file), or a
        folder with one .safetensors file or index.
      part: the subfolder that a folder of several models keeps this one in, where it has it.

    Raises:
      UserError: there is no such file, it can't be read, it is incomplete, or what reads it
        isn't installed.
    """
    if not path.exists():
        raise UserError(f"--source={path}: there is no such file")
    if path.is_dir():
        path = _find_weights(path / part if part and (path / part).is_dir() else path)
    readers = {".safetensors": _load_safetensors, ".json": _load_index}
    readers |= dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _load_torch)
    if path.suffix not in readers:
        raise UserError(
            f"--source={path}: give a .safetensors, .pt, .pth, .ckpt or .bin file, or a folder "
            f"or index of .safetensors files"
        )
    if re.fullmatch(SHARD, path.name):
        raise UserError(f"--source={path} is one shard of several: give their folder or index")
    try:
        return readers[path.suffix](path)
    except ImportError as error:
        raise UserError(
            f"--source={path} needs {error.name}: pip install -e '.[convert]'"
        ) from error


def _find_weights(folder: epath.Path) -> epath.Path:
    """The one index of a folder, or its one .safetensors file."""
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if re.fullmatch(r".*\.safetensors\.index(\..+)?\.json", name)]
    whole = [name for name in names if name.endswith(".safetensors")]
    found += [name for name in whole if not re.fullmatch(SHARD, name)]
    if not found:
        shards = "shards without their index" if whole else "no .safetensors file or index"
        raise UserError(f"--source={folder} holds {shards}: give a folder that has them, or a file")
    if len(found) > 1:
        raise UserError(f"--source={folder} holds {', '.join(found[:4])}: name one of them")
    return folder / found[0]


def _load_index(path: epath.Path) -> dict[str, np.ndarray]:
    """The weights of all shards that diffusers' index names, checked against it."""
    try:
        shards = json.loads(path.read_text())["weight_map"]
        names = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--source={path} is no index of .safetensors files") from error
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        raise UserError(
            f"--source={path}: {len(missing)} of {len(names)} shards are missing, {missing[0]} "
            f"first: get them into the same folder"
        )
    state = {}
    for name in names:
        shard = _load_safetensors(path.parent / name)
        wanted = {key for key, place in shards.items() if place == name}
        for key in sorted(wanted ^ shard.keys()):
            has = "lacks" if key in wanted else "has a weight that isn't its own,"
            raise UserError(
                f"--source={path}: the shard {name} {has} {key}: it is of another model, or of "
                f"another download; get it anew"
            )
        state |= shard
    return state


def _load_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    """Views of the file; a remote one is read whole. github.com/huggingface/safetensors: format."""
    try:
        data = _map(path)
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:start])) if start <= len(data) else None
        if not isinstance(header, dict):
            raise ValueError("its header is cut short")
        header.pop("__metadata__", None)
        return {key: _view(key, entry, data[start:]) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--source={path} is damaged or no .safetensors file: {error}") from error


def _map(path: epath.Path) -> memoryview:
    if "://" in str(path):
        return memoryview(path.read_bytes())
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _view(key: str, entry: Mapping[str, Any], data: memoryview) -> np.ndarray:
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise ValueError(f"{key} is {entry['dtype']}, which isn't a weight's dtype")
    dtype, shape = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]]), entry["shape"]
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= len(data) or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{key} isn't all there")
    return np.frombuffer(data[first:last], dtype).reshape(shape)


def _load_torch(path: epath.Path) -> dict[str, np.ndarray]:
    import torch

    try:
        # DiT's own training script keeps its command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever torch's unpickler stumbles over.
        raise UserError(
            f"--source={path} is damaged, or holds more than weights, which isn't safe to read: "
            f"get it anew, or look for a .safetensors file of the same weights"
        ) from error
    nested = [name for name in NESTED if isinstance(state, Mapping) and _is_nested(state, name)]
    state = state[nested[0]] if nested else state
    tensors = isinstance(state, Mapping) and all(map(torch.is_tensor, state.values()))
    if not tensors:
        raise UserError(f"--source={path} holds no state dict: give a file of weights")
    return {key: _to_numpy(tensor) for key, tensor in state.items()}


def _is_nested(state: Mapping[str, Any], name: str) -> bool:
    return isinstance(state.get(name), Mapping)


def _to_numpy(tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16 of its own, so torch wouldn't hand one out.
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
