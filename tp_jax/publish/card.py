"""The model card of an exported model, README.md, for the Hugging Face Hub."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

import tp_jax
from tp_jax.files.jsonl import read_json
from tp_jax.files.safetensors import file_sha256
from tp_jax.messages.errors import UserError

# Fields of scores.json that say how something was measured, and not the result.
_SETTINGS = ("drawing", "model", "settings", "protocol", "request")
PAPER = "https://arxiv.org/abs/2604.25299"


def read_scores(path: epath.Path) -> list[Mapping[str, Any]]:
    """Read results of `tp_jax.evaluate`.

    Args:
      path: a scores.json, or a folder with several of them at any depth.

    Raises:
      UserError: there is none, or one is damaged.
    """
    files = [path]
    if path.is_dir():
        files = sorted(map(epath.Path, pathlib.Path(path).rglob("scores.json")))
    if not files or not files[0].exists():
        raise UserError(f"--scores={path}: there is no scores.json")
    return [read_json(file, remedy="run tp_jax.evaluate again") for file in files]


def make_card(
    name: str,
    license: str,
    config: ConfigDict | None,
    facts: Mapping[str, str],
    scores: Sequence[Mapping[str, Any]],
    folder: epath.Path,
    load: str,
) -> str:
    """Return the text of the model card.

    Args:
      name: OWNER/NAME on the Hub.
      license: identifier of the license of the weights, such as "apache-2.0".
      config: of the run; None for converted weights.
      facts: what the reader should know, by name, such as the base.
      scores: from `read_scores`.
      folder: with the exported files.
      load: code that loads the model.
    """
    head = ["---", f"license: {license}", "library_name: tp_jax", "tags:", "- diffusion"]
    lines = [
        *head,
        "---",
        "",
        f"# {name.rpartition('/')[2]}",
        "",
        f"Exported by tp_jax {tp_jax.__version__}, recursive sparse reasoning in diffusion "
        f"transformers ([The Thinking Pixel]({PAPER})).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        "## Scores",
        "",
        *_score_lines(scores),
        "",
        "## How to load it",
        "",
        "```bash",
        load,
        "```",
        "",
        "## Files",
        "",
        "| file | bytes | SHA-256 |",
        "|---|---|---|",
    ]
    for path in sorted(folder.iterdir()):
        lines.append(f"| {path.name} | {path.stat().length:,} | `{file_sha256(path)}` |")
    if config is not None:
        fields = json.dumps(config.to_dict(), indent=1, default=str)
        lines += ["", "## Config", "", "```json", fields, "```"]
    return "\n".join([*lines, ""])


def _score_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    if not scores:
        return ["None were recorded."]
    lines = ["| suite | score | value | how |", "|---|---|---|---|"]
    for content in scores:
        how = _settings(content)
        suite = content.get("suite", content.get("protocol", "adm"))
        for name, value in _numbers(content):
            lines.append(f"| {suite} | {name} | {value:.4g} | {how} |")
    return lines


def _settings(content: Mapping[str, Any]) -> str:
    """Say how scores were measured: checkpoint, number, seed, sampler, guidance and protocol."""
    drawing = {**content.get("model", {}), **content.get("drawing", {})}
    sampler = drawing.get("sampler") or {}
    parts = [f"{key} {drawing[key]}" for key in ("checkpoint", "num", "seed") if key in drawing]
    if sampler:
        parts.append(f"{sampler['sampler']}, {sampler['steps']} steps")
        parts.append(f"guidance {sampler['guidance_scale']}")
    if "protocol" in content:
        parts.append(f"protocol {content['protocol']}")
    return ", ".join(parts)


def _numbers(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return the numbers of a result with their names, two levels deep."""
    found = []
    for key, value in content.items():
        if isinstance(value, float):
            found.append((prefix + key, value))
        elif isinstance(value, Mapping) and not prefix and key not in _SETTINGS:
            found += _numbers(value, f"{key} ")
    return found
