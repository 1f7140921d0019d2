"""Read and write .safetensors files; github.com/huggingface/safetensors describes the format."""

import hashlib
import json
import math
import mmap
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath
from safetensors.numpy import save, save_file

from tp_jax.files.atomic import replacing
from tp_jax.messages.errors import UserError

BLOCK = 1 << 24
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .safetensors file by name; those of a local file are memory-mapped.

    bfloat16 and float8 are the dtypes of `ml_dtypes`.

    Raises:
      UserError: the file is cut, or isn't a .safetensors file.
    """
    try:
        data = _memory_map(path)
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:start])) if start <= len(data) else None
        if not isinstance(header, dict):
            raise ValueError("its header is incomplete")
        header.pop("__metadata__", None)
        return {key: _view(key, entry, data[start:]) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or isn't a .safetensors file ({error}): download it again"
        ) from error


def write_safetensors(
    path: epath.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> str:
    """Write arrays to a .safetensors file, and return its SHA-256.

    Args:
      path: a local or remote file.
      arrays: by name.
      metadata: texts for the header of the file, such as {"format": "pt"}.

    Raises:
      WriteError: the file can't be written.
    """
    # The library ignores strides: it would write a transposed array's buffer in the wrong order.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(path) as temporary:
        if "://" in str(path):
            temporary.write_bytes(save(contiguous, dict(metadata)))
        else:
            save_file(contiguous, str(temporary), dict(metadata))
    return file_sha256(path)


def file_sha256(path: epath.Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _memory_map(path: epath.Path) -> memoryview:
    if "://" in str(path):
        return memoryview(path.read_bytes())
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _view(key: str, entry: Mapping[str, Any], data: memoryview) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{key} has the unsupported dtype {entry['dtype']}")
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= len(data) or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the data of {key} is incomplete")
    return np.frombuffer(data[first:last], dtype).reshape(shape)
