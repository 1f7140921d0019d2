"""Load published torch models and tokenizers from local folders, with the package transformers.

transformers fills weights that a file lacks with random numbers, and ignores those that the model
doesn't have. Here, every weight of the model must be in the file, and every weight of the file in
the model.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from etils import epath

from tp_jax.files.downloads import check_download, read_downloaded_json
from tp_jax.files.finite import check_floating
from tp_jax.files.safetensors import file_sha256, read_safetensors
from tp_jax.messages.errors import UserError

# Entries that published files may hold and that the current version of a model computes itself.
COMPUTED = re.compile(
    r"(^|\.)(position_ids|relative_position_index|num_batches_tracked|criterion\.empty_weight)$"
)
SAFETENSORS = ".safetensors"
# The token embedding of T5 is stored under one or both of these names.
T5_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
# The files of a tokenizer, by their endings.
TOKENIZER_SUFFIXES = (".json", ".txt", ".model")
# The rows of a token embedding may be padded to a multiple of this.
VOCABULARY_UNIT = 128
# Errors that transformers and its dependencies raise for files that they can't read.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


def import_packages(user: str) -> tuple[Any, Any]:
    """Return the modules torch and transformers.

    Args:
      user: what needs them, for the error message.

    Raises:
      UserError: one of them isn't installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"{user} needs {error.name}: pip install -e '.[text]'") from error
    return torch, transformers


def choose_device(device: str | None = None) -> str:
    """Return a torch device: the given one, by default a GPU if one is available, else the CPU."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def load_published(
    model_class: Any, folder: epath.Path, name: str = "", *, pickled: bool = False, **options: Any
) -> Any:
    """Load a torch model from a folder with config.json and its weights.

    Args:
      model_class: a model class of transformers.
      folder: the folder.
      name: what the model is, for error messages; by default the name of the class.
      pickled: accept torch's own files too (pytorch_model.bin) if there is no .safetensors file.
      options: more arguments of `from_pretrained`.

    Returns:
      The model in evaluation mode, on the CPU.

    Raises:
      UserError: a file is missing, cut or a stand-in; config.json belongs to another model or
        contradicts the weights; a weight is missing, left over, of another shape, NaN or infinite.
    """
    name = name or model_class.__name__
    config = folder / "config.json"
    if not config.exists():
        raise UserError(f"{folder}: has no config.json: name a folder with published weights")
    variant, files = weight_files(folder, pickled=pickled)
    for file in (config, *files):
        check_download(file)
    check_not_quantised(files)
    check_config(model_class.config_class.model_type, config)
    if model_class.config_class.model_type == "t5":
        check_tied(files)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} has an adapter (adapter_config.json): merge it into the weights")
    with _readable(folder), _quiet():
        model, info = model_class.from_pretrained(
            str(folder),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            variant=variant,
            use_safetensors=files[0].suffix == SAFETENSORS,
            **options,
        )
    shapes = {key: (list(stored), list(wanted)) for key, stored, wanted in info["mismatched_keys"]}
    check_loaded(folder, name, info["missing_keys"], info["unexpected_keys"], shapes)
    _check_finite(model, files)
    return model.eval()


def check_loaded(
    folder: epath.Path,
    name: str,
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: dict[str, tuple[list[int], list[int]]],
) -> None:
    """Raise a UserError unless the weights of a file are exactly those of a model.

    Args:
      folder, name: the folder and the model, for the error message.
      missing: weights of the model that the file lacks.
      unexpected: weights of the file that the model lacks.
      shapes: (shape in the file, shape in the model) by name, where they differ.
    """
    unused = sorted(key for key in unexpected if not COMPUTED.search(key))
    problems = [f"{key} is missing" for key in sorted(missing)]
    problems += [
        f"{key} has shape {stored}, expected {wanted}"
        for key, (stored, wanted) in sorted(shapes.items())
    ]
    problems += [f"{key} isn't used by this model" for key in unused]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{folder}: the weights aren't those of {name} with this config.json: {problems[0]}"
            f"{more}; download config.json and the weights again"
        )


def weight_files(
    folder: epath.Path, *, pickled: bool = False
) -> tuple[str | None, list[epath.Path]]:
    """Return the `variant` to pass to transformers, and the weight files that it then reads.

    Full precision comes before the variant fp16, and one file before shards, as in transformers.

    Raises:
      UserError: there are none, or an index can't be read.
    """
    for variant in (None, "fp16"):
        dot = f".{variant}" if variant else ""
        whole = folder / f"model{dot}.safetensors"
        if whole.exists():
            return variant, [whole]
        for index in (
            folder / f"model.safetensors.index{dot}.json",
            folder / f"model{dot}.safetensors.index.json",
        ):
            if index.exists():
                return variant, _shards(index)
    if pickled and (folder / "pytorch_model.bin").exists():
        return None, [folder / "pytorch_model.bin"]
    raise UserError(
        f"{folder} has no model.safetensors: download the weights as .safetensors files"
    )


def weights_sha256(folder: epath.Path) -> str:
    """Return the SHA-256 of the weight files of a folder; of several, that of their SHA-256s."""
    hashes = [file_sha256(file) for file in weight_files(folder)[1]]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _shards(index: epath.Path) -> list[epath.Path]:
    """Return the files that an index of shards names."""
    check_download(index)
    names = read_downloaded_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(map(_is_name, names.values())):
        raise UserError(f"{index} isn't an index of .safetensors files: download it again")
    return [index.parent / name for name in sorted(set(names.values()))]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and "/" not in value


def check_config(wanted: str, config: epath.Path) -> None:
    """Raise a UserError if a config.json describes a model of another kind, or a quantised one.

    Args:
      wanted: the `model_type` of the model.
      config: the file.
    """
    content = read_downloaded_json(config)
    found = content.get("model_type")
    # "clip" is a whole CLIP, whose config contains that of its text encoder.
    if found not in (None, wanted) and not wanted.startswith(f"{found}_"):
        raise UserError(
            f"{config} describes a model of type {found!r}, expected {wanted!r}: download the "
            f"folder again"
        )
    if content.get("quantization_config"):
        raise UserError(
            f"{config} has a quantization_config: give weights that aren't quantised, with the "
            f"config.json of these"
        )
    for name, value in content.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{config}: {name} is {value}: download it again")


@contextlib.contextmanager
def _readable(folder: epath.Path) -> Iterator[None]:
    """Turn the errors of transformers about a folder into one line."""
    try:
        yield
    except ImportError as error:
        needed = error.name or str(error).splitlines()[0]
        raise UserError(f"{folder} needs {needed}: pip install -e '.[text]'") from error
    except Exception as error:
        # The Rust code of tokenizers raises plain exceptions, and huggingface_hub its own ones.
        is_known = isinstance(error, UNREADABLE) or type(error) is Exception
        if not is_known and not type(error).__module__.startswith("huggingface_hub."):
            raise
        reason = " ".join((str(error).strip() or repr(error)).split())[:200]
        raise UserError(f"{folder}: {reason}; download it again") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars and reports: what they say about weights is an error here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_finite(model: Any, files: list[epath.Path]) -> None:
    """Raise a UserError if a weight has NaN or infinity."""
    for key, weight in model.state_dict().items():
        finite = weight.isfinite()
        if not finite.all():
            holders = [f for f in files if f.suffix == SAFETENSORS and key in read_safetensors(f)]
            index = (~finite).nonzero()[0].tolist()
            raise UserError(
                f"{(holders or files)[0]}: the weight {key} has the value "
                f"{weight[tuple(index)].item()} at {index}: download it again"
            )


def check_not_quantised(files: list[epath.Path]) -> None:
    """Raise a UserError if a weight is an integer, which transformers would convert silently."""
    for file in files:
        for key, array in read_safetensors(file).items() if file.suffix == SAFETENSORS else ():
            if not COMPUTED.search(key):
                check_floating(f"{file}: {key}", array, "give weights that aren't quantised")


def check_tied(files: list[epath.Path]) -> None:
    """Check that T5's token embedding is in the files, and the same under both of its names.

    Versions of transformers differ in which of the two they use.

    Raises:
      UserError: it is missing, or there are two different ones.
    """
    arrays = {key: array for file in files for key, array in read_safetensors(file).items()}
    found = [arrays[key] for key in T5_EMBEDDINGS if key in arrays]
    if not found:
        raise UserError(f"{files[0]}: {T5_EMBEDDINGS[0]} is missing: download it again")
    if not all(np.array_equal(found[0], other) for other in found[1:]):
        raise UserError(f"{files[0]}: {' and '.join(T5_EMBEDDINGS)} differ: download it again")


def load_tokenizer(folder: epath.Path, name: str, vocabulary: int) -> Any:
    """Load a tokenizer from a folder.

    Args:
      folder: the folder.
      name: what it belongs to, for error messages.
      vocabulary: rows of the model's token embedding.

    Raises:
      UserError: a file is missing, cut or a stand-in, or the tokenizer has another number of tokens
        than the model.
    """
    import transformers

    check_tokenizer_files(folder)
    with _readable(folder), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    tokens = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    padded = -(-tokens // VOCABULARY_UNIT) * VOCABULARY_UNIT
    if not tokens <= vocabulary <= padded:
        raise UserError(
            f"{folder}: the tokenizer has {tokens} tokens, but {name} has {vocabulary}: it is cut, "
            f"or belongs to another model; download it again"
        )
    return tokenizer


def load_processor(folder: epath.Path) -> Any:
    """Load what prepares images and text for a model, from the model's folder.

    Raises:
      UserError: a file of the tokenizer or of the preprocessing is missing, cut or a stand-in.
    """
    import transformers

    check_tokenizer_files(folder)
    with _readable(folder), _quiet():
        return transformers.AutoProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


def tokenizer_files(folder: epath.Path) -> list[epath.Path]:
    """Return the files in a folder that a tokenizer may read."""
    return sorted(path for path in folder.iterdir() if path.suffix in TOKENIZER_SUFFIXES)


def check_tokenizer_files(folder: epath.Path) -> None:
    """Check the files of a tokenizer without loading it.

    Raises:
      UserError: there are none, one is empty, cut or a stand-in, or merges.txt lacks the merges of
        tokens in vocab.json.
    """
    files = {path.name: path for path in tokenizer_files(folder)}
    if not files.keys() & {"tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model"}:
        raise UserError(f"{folder} has no tokenizer: download its files")
    for path in files.values():
        check_download(path)
    if "vocab.json" in files and "tokenizer.json" not in files and "merges.txt" not in files:
        raise UserError(f"{folder} has vocab.json but no merges.txt: download it")
    if {"vocab.json", "merges.txt"} <= files.keys():
        _check_merges(files["vocab.json"], files["merges.txt"])
    for name in ("spiece.model", "tokenizer.model"):
        if name in files:
            _check_sentencepiece(files[name])


def _check_merges(vocabulary: epath.Path, merges: epath.Path) -> None:
    """Check that every token of a byte-pair encoding is a symbol, a special token or a merge."""
    lines = merges.read_bytes().decode().split("\n")
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(
                f"{merges} is cut: the line {' '.join(pair)!r} isn't a pair; download it again"
            )
    merged = {first + second for first, second in pairs}
    tokens = read_downloaded_json(vocabulary)
    lacking = [
        token
        for token in tokens
        if token not in merged
        and len(token.removesuffix("</w>")) > 1
        and not re.fullmatch(r"<.*>", token)
    ]
    if lacking:
        raise UserError(
            f"{merges} lacks the merges of {len(lacking)} tokens in {vocabulary.name}, such as "
            f"{lacking[0]!r}: it is cut; download it again"
        )


def _check_sentencepiece(path: epath.Path) -> None:
    try:
        import sentencepiece
    except ImportError:
        return
    try:
        sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError:
        raise UserError(
            f"{path} is cut or isn't a SentencePiece model: download it again"
        ) from None
