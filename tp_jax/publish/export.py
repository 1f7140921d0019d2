"""Export a trained model, or converted weights, as .safetensors files that others can load."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.files.atomic import write_errors, write_json
from tp_jax.files.finite import check_finite
from tp_jax.files.folders import can_resume
from tp_jax.files.jsonl import read_json
from tp_jax.files.safetensors import write_safetensors
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.models import DiTConfig, MMDiTConfig, TransformerConfig, build_model
from tp_jax.models.autoencoder import AutoencoderConfig
from tp_jax.models.parameters import Params
from tp_jax.pretrained import autoencoder, dit, sd3
from tp_jax.pretrained.folder import DESCRIPTION_FILE, load_folder, read_description
from tp_jax.publish.card import make_card, read_scores
from tp_jax.publish.push import CARD, check_push, push
from tp_jax.sampling.loaded import restore
from tp_jax.workdir.exported import write_parts
from tp_jax.workdir.record import CONFIG, TEXT, VERSIONS, read_config

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# The name of the weights in diffusers' folders.
WEIGHTS = "diffusion_pytorch_model"
DIT_FILE = "model.safetensors"
# The version of diffusers whose classes the tests load exported models with.
DIFFUSERS_VERSION = "0.42.1"
GIGABYTE = 10**9
# --format -> the commands in the model card that load the model.
LOADING = {
    "tp_jax": "python -m tp_jax.sample --workdir=hf://{name} --out=pictures",
    "diffusers": "python -c 'import diffusers; diffusers.AutoModel.from_pretrained(\"{name}\")'",
    "dit": "hf download {name} model.safetensors  # for the DiT class of facebookresearch/DiT",
}


@dataclasses.dataclass(frozen=True)
class Export:
    """The flags of `tp_jax.export`.

    Attributes:
      workdir: a workdir, or a folder of converted weights.
      out: new or empty folder.
      format: a key of `FORMATS`.
      checkpoint: train step of the checkpoint; None is the newest.
      ema: export the moving average of the parameters; if False, the parameters themselves.
      dtype: of the files of diffusers and DiT, a key of `DTYPES`.
      with_base: include the base in the format tp_jax; None includes it unless it was frozen.
      shard_gigabytes: the largest size of a file of weights in diffusers' format.
      allow_unchecked: accept a checkpoint whose checksums are missing or damaged.
      push: OWNER/NAME on the Hugging Face Hub that the folder is uploaded to; "" uploads nothing.
      license: identifier of the license of the weights, for the model card.
      scores: file or folder of results of `tp_jax.evaluate`, for the model card; "" has none, and
        None if it wasn't given.
      private: whether a new repository on the Hub is private.
    """

    workdir: epath.Path
    out: epath.Path
    format: str = "tp_jax"
    checkpoint: int | None = None
    ema: bool = True
    dtype: str = "float32"
    with_base: bool | None = None
    shard_gigabytes: float = 5.0
    allow_unchecked: bool = False
    push: str = ""
    license: str = ""
    scores: str | None = None
    private: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
      model: its config.
      params: its parameters: {"base", "thinking"}, or {"base"} of converted weights.
      frozen: whether the base was frozen in training.
      run: the train step of the checkpoint; None for converted weights.
      config: of the run; None for converted weights.
      origin: where the weights are from, for the model card.
    """

    model: TransformerConfig | AutoencoderConfig
    params: Params
    frozen: bool = False
    run: int | None = None
    config: ConfigDict | None = None
    origin: str = ""


def export(request: Export) -> None:
    """Export a model, and print what was written.

    The files are written to a folder beside `out`, which is renamed at the end.

    Raises:
      UserError: the model can't be read, or has no counterpart in the format; nothing is written.
      WriteError: a file can't be written; what was written is removed.
    """
    write = FORMATS[request.format]
    can_resume(request.out, None, f"--out={request.out}")
    if not request.workdir.exists():
        raise UserError(f"--workdir={request.workdir}: there is no such folder")
    if request.push:
        check_push(request.push, request.license, request.scores)
    scores = read_scores(epath.Path(request.scores)) if request.scores else []
    converted = (request.workdir / DESCRIPTION_FILE).exists()
    source = _read_converted(request) if converted else _read_run(request)
    with _written_aside(request.out) as folder:
        notes = write(folder, source, request)
        if request.push:
            card = make_card(
                request.push, request.license, source.config, _facts(source, request), scores,
                folder, LOADING[request.format].format(name=request.push),
            )  # fmt: skip
            (folder / CARD).write_text(card)
    for note in notes:
        say(note)
    say(f"wrote {request.format} format to {request.out}")
    if request.push:
        push(request.out, request.push, private=request.private)


def _facts(source: Source, request: Export) -> dict[str, str]:
    """Return what the model card says in its first table."""
    kind = type(source.model).__name__.removesuffix("Config")
    facts = {"model": kind, "weights": source.origin, "format": request.format}
    if source.run is not None:
        facts |= {"train step": str(source.run), "moving average": "yes" if request.ema else "no"}
    if source.config is not None:
        thinking, base = source.config.model.thinking, source.config.init.base
        facts["data"] = source.config.data.source
        facts["base"] = (base or "trained from random weights") + ", frozen" * source.frozen
        if thinking.layers and request.format == "tp_jax":
            facts["thinking"] = (
                f"blocks {', '.join(map(str, thinking.layers))}, {thinking.experts} experts of "
                f"rank {thinking.rank}, {thinking.latent_steps} latent steps"
            )
    return facts


@contextlib.contextmanager
def _written_aside(out: epath.Path) -> Iterator[epath.Path]:
    """Yield a folder beside `out`, and rename it to `out` if the block succeeds."""
    # A name that nobody else gives a folder, because what is there is removed.
    folder = out.with_name(out.name + ".exporting")
    with write_errors(out):
        if folder.exists():  # Of an export that was killed.
            folder.rmtree()
        folder.mkdir(parents=True)
        try:
            yield folder
            if out.exists():
                out.rmdir()
            folder.rename(out)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmtree()
            raise


def _read_run(request: Export) -> Source:
    config = read_config(request.workdir)
    built = config_lib.build(config)
    train_step, params = restore(
        request.workdir, config, build_model(built.model), request.checkpoint,
        ema=request.ema, allow_unchecked=request.allow_unchecked,
    )  # fmt: skip
    frozen = config.train.trainable == "thinking"
    host = jax.tree.map(np.asarray, params)
    return Source(built.model, host, frozen, train_step, config, "trained with tp_jax")


def _read_converted(request: Export) -> Source:
    path = request.workdir / DESCRIPTION_FILE
    kind = read_json(path, {"kind": str}, "convert the weights again")["kind"]
    readers: dict[str, Callable[..., Any]] = {
        "dit": DiTConfig, "sit": DiTConfig, "sd3": MMDiTConfig, "sd-vae": AutoencoderConfig
    }  # fmt: skip
    if kind not in readers:
        raise UserError(
            f"--workdir={request.workdir} holds weights of {kind}, which has no format to export "
            f"to: give a folder of {', '.join(readers)}, or a workdir"
        )
    if request.checkpoint is not None or not request.ema:
        raise UserError(
            f"--workdir={request.workdir} holds converted weights, which have no checkpoints and "
            f"no averages: leave --checkpoint and --noema out"
        )
    description = read_description(request.workdir, kind)
    fields = dict(description.config)
    fields.pop("learned_sigma", None)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if kind == "sd3":
        fields["image_size"] = fields["patch"] * fields["base_grid"]
    if kind != "sd-vae":
        fields["thinking"] = config_lib.ThinkingConfig(layers=())
    model = readers[kind](**fields)
    _, params = load_folder(request.workdir, kind)
    return Source(model, {"base": params}, origin=f"converted from {description.source}")


def _write_tp_jax(folder: epath.Path, source: Source, request: Export) -> list[str]:
    if source.run is None:
        raise UserError(
            f"--workdir={request.workdir} holds converted weights, which tp_jax loads as they are: "
            f"choose --format=diffusers or --format=dit, or give a workdir"
        )
    for name in (CONFIG, VERSIONS, TEXT):
        if (request.workdir / name).exists():
            (folder / name).write_bytes((request.workdir / name).read_bytes())
    with_base = not source.frozen if request.with_base is None else request.with_base
    found = write_parts(folder, source.params, source.run, ema=request.ema, with_base=with_base)
    notes = [f"checkpoint {source.run}: {', '.join(found.files)}"]
    if not with_base:
        notes.append(
            f"the frozen base isn't included: the model loads with any copy of it at "
            f"{request.out}/base (SHA-256 {found.base[:12]}…); --with_base includes it"
        )
    return notes


def _write_diffusers(folder: epath.Path, source: Source, request: Export) -> list[str]:
    model = source.model
    base = source.params["base"]
    notes = _without_thinking(source)
    if isinstance(model, DiTConfig):
        _check_dit(model, "diffusers")
        state, config = dit.write_dit(base, model, diffusers=True), dit.diffusers_config(model)
        notes.append(
            "diffusers computes other frequencies for the timestep (127 for 128), so that its "
            "outputs differ slightly from ours"
        )
    elif isinstance(model, MMDiTConfig):
        state, config = sd3.write_sd3(base, model), sd3.diffusers_config(model)
    elif isinstance(model, AutoencoderConfig):
        state = autoencoder.write_autoencoder(base, model)
        config = autoencoder.diffusers_config(model)
    else:
        raise UserError(
            "--format=diffusers: it has no class for this config.model.kind: choose --format=tp_jax"
        )
    write_json(folder / "config.json", config | {"_diffusers_version": DIFFUSERS_VERSION})
    state = _cast(state, request.dtype)
    notes.append(_write_shards(folder, state, request.shard_gigabytes * GIGABYTE))
    return notes


def _write_dit(folder: epath.Path, source: Source, request: Export) -> list[str]:
    if not isinstance(source.model, DiTConfig):
        raise UserError("--format=dit is the layout of a DiT only: choose --format=diffusers")
    _check_dit(source.model, "dit")
    state = _cast(dit.write_dit(source.params["base"], source.model), request.dtype)
    write_safetensors(folder / DIT_FILE, state, {"format": "pt"})
    return [*_without_thinking(source), f"{DIT_FILE}: {len(state)} weights, {request.dtype}"]


# --format -> (folder, source, request) -> lines for the user
FORMATS: dict[str, Callable[[epath.Path, Source, Export], list[str]]] = {
    "tp_jax": _write_tp_jax,
    "diffusers": _write_diffusers,
    "dit": _write_dit,
}


def _without_thinking(source: Source) -> list[str]:
    if isinstance(source.model, AutoencoderConfig) or not source.model.thinking.layers:
        return []
    return [
        "this is the base alone: thinking can't be folded into its weights, because it depends on "
        "the token and the timestep; --format=tp_jax exports it"
    ]


def _check_dit(model: DiTConfig, format: str) -> None:
    """Raise a UserError if a DiT has parts that the classes of others don't have."""
    problem = None
    if model.frame:
        problem = f"config.model.frame={model.frame!r}"
    elif model.time_input != "timestep":
        problem = f"config.model.time_input={model.time_input!r}"
    elif model.unconditional:
        problem = "config.model.num_classes=0"
    elif format == "diffusers" and model.mlp_ratio != 4:
        problem = f"config.model.mlp_ratio={model.mlp_ratio}"
    elif format == "diffusers" and not model.null_class:
        problem = "config.model.null_class=False"
    if problem:
        raise UserError(
            f"--format={format}: its class has no model with {problem}: choose --format=tp_jax"
        )


def _cast(state: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):  # What is beyond the range of float16 is refused below.
        cast = {name: array.astype(DTYPES[dtype], copy=False) for name, array in state.items()}
    for name, array in cast.items():
        check_finite(f"--dtype={dtype}: {name}", array, "its values are too large; use bfloat16")
    return cast


def _write_shards(folder: epath.Path, state: Mapping[str, np.ndarray], limit: float) -> str:
    """Write weights as diffusers does: to one file, or to several of at most `limit` bytes."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in sorted(state.items(), key=lambda item: _numbered(item[0])):
        if shards[-1] and size + array.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    total = sum(array.nbytes for array in state.values())
    if len(shards) == 1:
        write_safetensors(folder / f"{WEIGHTS}.safetensors", state, {"format": "pt"})
        return f"{WEIGHTS}.safetensors: {len(state)} weights, {total:,} bytes"
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"{WEIGHTS}-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, shard, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / f"{WEIGHTS}.safetensors.index.json", index)
    return f"{len(shards)} files {WEIGHTS}-….safetensors: {len(state)} weights, {total:,} bytes"


def _numbered(name: str) -> list[Any]:
    """Return a key that sorts names with numbers in the order of the numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
