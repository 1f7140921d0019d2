"""Mean and standard deviation over seeds of the scores in ROOT/VARIANT/SEED/scores.json."""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from tp_jax.files.atomic import write_json, write_text
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError

# {column: {row: value}}. Values are shares from 0 to 1, except in rows whose name ends in
# COUNT_SUFFIX, which hold counts.
Columns = dict[str, dict[str, float]]
COUNT_SUFFIX = "plays"


# (content of a scores.json, name of its variant) -> columns
ReadColumns = Callable[[dict[str, Any], str], Columns]


def collect(
    root: epath.Path,
    out: epath.Path,
    suite: str,
    read_columns: ReadColumns,
    plain: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Summarise scores over seeds: write `out`, and the same as a Markdown table next to it.

    Args:
      root: folder with the files VARIANT/SEED/scores.json.
      out: FILE.json; the table is written to FILE.md and printed.
      suite: name of the suite that wrote the scores.
      read_columns: the suite's function that reads the content of one scores.json.
      plain: endings of the rows whose values aren't shares, and are shown as they are.

    Returns:
      The content of `out`.

    Raises:
      UserError: a scores.json is missing or isn't of this suite, or the variants have different
        seeds.
    """
    files = sorted(root.glob("*/*/scores.json"))
    if not files:
        raise UserError(
            f"--collect={root}: no VARIANT/SEED/scores.json in this folder; launch/compare.sh "
            f"writes them"
        )
    found: dict[str, dict[str, Any]] = {}
    keys: list[str] = []
    for file in files:
        seed, variant = file.parent.name, file.parent.parent.name
        try:
            columns = read_columns(read_json(file), variant)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{file} isn't a complete score file of suite {suite}: run the evaluation again"
            ) from error
        for name, rows in columns.items():
            keys = keys or list(rows)
            if set(rows) != set(keys):
                different = sorted(set(rows) ^ set(keys))
                raise UserError(
                    f"{file} has different scores than {files[0]} (for example "
                    f"{', '.join(different[:3])}): evaluate all runs with the same options"
                )
            found.setdefault(name, {}).setdefault(seed, rows)
    # Baselines without training (a random walker, an oracle) come after the trained variants.
    trained = {file.parent.parent.name for file in files}
    found = dict(sorted(found.items(), key=lambda item: item[0] not in trained))
    seeds = {name: sorted(runs) for name, runs in found.items()}
    if len({tuple(names) for names in seeds.values()}) > 1:
        raise UserError(
            f"--collect={root}: the variants have different seeds, {seeds}: run every variant with "
            f"the same seeds"
        )
    content = {"suite": suite, "seeds": next(iter(seeds.values())), "variants": {}}
    for name, runs in found.items():
        rows = {key: [run[key] for run in runs.values()] for key in next(iter(runs.values()))}
        content["variants"][name] = {
            "mean": {key: float(np.mean(row)) for key, row in rows.items()},
            "std": {key: float(np.std(row, ddof=1)) for key, row in rows.items() if len(row) > 1},
            "runs": runs,
        }
    write_json(out, content)
    table = as_table(content, plain)
    write_text(out.with_suffix(".md"), table + "\n")
    print(table)
    return content


def as_table(content: dict[str, Any], plain: tuple[str, ...] = ()) -> str:
    """Return a Markdown table: one row per score, one column per variant, values in percent.

    Args:
      content: from `collect`.
      plain: as for `collect`.
    """
    variants = content["variants"]
    keys = next(iter(variants.values()))["mean"]
    unit = "M" if all(key.endswith(plain) for key in keys) else "Percent, m"
    lines = [
        f"{unit}ean ± standard deviation over {len(content['seeds'])} seeds.",
        "",
        "| | " + " | ".join(variants) + " |",
        "|---|" + "---|" * len(variants),
    ]
    for key in keys:
        if key.endswith(COUNT_SUFFIX):
            cells = [f"{scores['mean'][key]:g}" for scores in variants.values()]
            lines.append(f"| {key} (number) | " + " | ".join(cells) + " |")
            continue
        cells = [_cell(scores, key, key.endswith(plain)) for scores in variants.values()]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(scores: dict[str, Any], key: str, plain: bool) -> str:
    """Return mean and standard deviation of a score, in percent unless `plain`."""
    found = [scores[part][key] for part in ("mean", "std") if key in scores[part]]
    return " ± ".join(f"{value:.4g}" if plain else f"{100 * value:.1f}" for value in found)
