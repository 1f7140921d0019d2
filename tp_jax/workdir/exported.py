"""Exported models: folders that hold a trained model in .safetensors files instead of checkpoints.

`tp_jax.export` writes them. They have the records of a workdir, such as config.json, so that all
commands that load the model of a workdir load them too.

    export.json            what is in the folder; written last
    base.safetensors       parameters of the base; missing if it was frozen and isn't included
    thinking.safetensors   parameters of thinking

A base that isn't included is found in FOLDER/base, which may be a link, or else where
`config.init.base` says. Its SHA-256 must be that of the base that the model was trained on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.files.atomic import write_json
from tp_jax.files.hub import local
from tp_jax.files.jsonl import read_json
from tp_jax.files.safetensors import file_sha256, read_safetensors, write_safetensors
from tp_jax.messages.errors import UserError
from tp_jax.models.parameters import Params, check_finite_params
from tp_jax.parallel.sharding import path_name
from tp_jax.pretrained.folder import weights_identity
from tp_jax.workdir.checkpoints import check_fit, load_base

DESCRIPTION = "export.json"
BASE = "base"
MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class Exported:
    """The content of export.json.

    Attributes:
      checkpoint: train step of the exported checkpoint.
      ema: whether the parameters are the moving averages.
      base: SHA-256 of the parameters of the base, as `weights_identity` computes it.
      files: {name: SHA-256} of the .safetensors files.
    """

    checkpoint: int
    ema: bool
    base: str
    files: Mapping[str, str]


def is_exported(folder: epath.Path) -> bool:
    """Return whether a folder holds an exported model."""
    return (folder / DESCRIPTION).exists()


def write_parts(
    folder: epath.Path, params: Params, checkpoint: int, *, ema: bool, with_base: bool
) -> Exported:
    """Write the parameters of a model, and export.json.

    Args:
      folder: the folder.
      params: {"base", "thinking"}, trees of NumPy arrays.
      checkpoint, ema: as in `Exported`.
      with_base: include the base.

    Raises:
      WriteError: a file can't be written.
    """
    files = {}
    for part, tree in params.items():
        if part != BASE or with_base:
            name = f"{part}.safetensors"
            files[name] = write_safetensors(folder / name, _named(tree), {"format": "tp_jax"})
    found = Exported(checkpoint, ema, weights_identity(params[BASE]), files)
    write_json(folder / DESCRIPTION, dataclasses.asdict(found))
    return found


def read_exported(folder: epath.Path) -> Exported:
    """Read export.json.

    Raises:
      UserError: it is damaged.
    """
    wanted = {"checkpoint": int, "ema": bool, "base": str, "files": dict}
    fields = read_json(folder / DESCRIPTION, wanted, "export the model again")
    return Exported(**{name: fields[name] for name in wanted})


def restore_exported(
    folder: epath.Path,
    abstract: Params,
    base: str,
    model: Mapping[str, Any],
    *,
    checkpoint: int | None = None,
    ema: bool = True,
    allow_unchecked: bool = False,
) -> tuple[int, Params]:
    """Restore the parameters of an exported model, and return its train step with them.

    Args:
      folder: the folder.
      abstract: {"base", "thinking"} shapes, dtypes and shardings.
      base: `config.init.base`, where the base may be if it isn't included.
      model: fields of `config.model`.
      checkpoint, ema: which weights are asked for; they must be those that were exported.
      allow_unchecked: load files whose SHA-256 is wrong, and a base whose checksums are missing.

    Raises:
      UserError: other weights were exported, a file is missing, damaged or doesn't fit, or the base
        isn't there or is another one.
    """
    found = read_exported(folder)
    if checkpoint not in (None, found.checkpoint):
        raise UserError(f"{folder} has checkpoint {found.checkpoint} only, not {checkpoint}")
    if ema != found.ema:
        kind, flag = ("averaged", "--noema") if found.ema else ("trained", "--ema")
        raise UserError(f"{folder} has the {kind} parameters only: leave {flag} out")
    params = {}
    for part, target in abstract.items():
        name = f"{part}.safetensors"
        if name in found.files:
            problem = None if allow_unchecked else file_problem(folder / name, found.files[name])
            if problem:
                what = problem if problem == MISSING else f"damaged, {problem}"
                raise UserError(f"{folder / name} is {what}: copy the whole folder again")
            params[part] = _read_part(folder / name, target)
        elif part == BASE:
            params[part] = _load_base(folder, base, target, model, found, allow_unchecked)
        else:
            raise UserError(f"{folder} was exported without {name}: export the model again")
    return found.checkpoint, params


def _load_base(
    folder: epath.Path,
    given: str,
    target: Any,
    model: Mapping[str, Any],
    found: Exported,
    allow_unchecked: bool,
) -> Any:
    """Load the base that isn't included, and check that it is the right one."""
    places = [str(folder / BASE), *([given] if given else [])]
    path = next((place for place in places if local(place).exists()), None)
    if path is None:
        raise UserError(
            f"{folder} doesn't include its base, which is not at {' or '.join(places)}: put a copy "
            f"of it, or a link, at {places[0]}"
        )
    loaded = load_base(path, target, model, allow_unchecked=allow_unchecked)
    identity = weights_identity(jax.tree.map(_whole, loaded))
    if identity != found.base:
        raise UserError(
            f"the base {path} isn't the one that {folder} was trained on (SHA-256 "
            f"{identity[:12]}…, not {found.base[:12]}…): put a copy of that one at {places[0]}"
        )
    return loaded


def _whole(array: jax.Array) -> np.ndarray:
    """Return a replicated array as a NumPy array, also where several processes hold it."""
    return np.asarray(array.addressable_data(0)) if array.is_fully_replicated else np.asarray(array)


def file_problem(path: epath.Path, wanted: str) -> str | None:
    """Return what is wrong with a file that was written with this SHA-256; None if nothing is."""
    if not path.exists():
        return MISSING
    return None if file_sha256(path) == wanted else "its SHA-256 is wrong"


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _read_part(path: epath.Path, target: Any) -> Any:
    """Read the arrays of a file onto the shardings of `target`; each process reads its parts."""
    arrays = read_safetensors(path)
    leaves, structure = jax.tree_util.tree_flatten_with_path(target)
    wanted = {path_name(key): leaf for key, leaf in leaves}
    check_fit(str(path), arrays, wanted)

    def place(name: str, leaf: Any) -> jax.Array:
        array = arrays[name].astype(leaf.dtype, copy=False)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    placed = [place(name, leaf) for name, leaf in wanted.items()]
    part = jax.tree_util.tree_unflatten(structure, placed)
    check_finite_params(str(path), part, "export the model again")
    return part
