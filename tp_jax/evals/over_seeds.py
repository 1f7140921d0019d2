"""Mean and spread over seeds of the scores in ROOT/VARIANT/SEED/scores.json."""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from tp_jax.files.atomic import write_json
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError

# Columns of {row: share of 0 to 1}, but for rows of this end, which are numbers.
Columns = dict[str, dict[str, float]]
COUNTED = "plays"


# (content of a scores.json, its variant) -> columns
ReadColumns = Callable[[dict[str, Any], str], Columns]


def collect(
    root: epath.Path, out: epath.Path, suite: str, read_columns: ReadColumns
) -> dict[str, Any]:
    """Writes FILE.json and, beside it, the same as a table FILE.md.

    Args:
      suite: name of the suite that made the scores.
      read_columns: the suite's own reading of one file.

    Raises:
      UserError: there are no scores of this suite, or a variant hasn't the same seeds as another.
    """
    files = sorted(root.glob("*/*/scores.json"))
    if not files:
        raise UserError(f"--collect={root}: has no VARIANT/SEED/scores.json; see launch/compare.sh")
    found: dict[str, dict[str, Any]] = {}
    keys: list[str] = []
    for file in files:
        seed, variant = file.parent.name, file.parent.parent.name
        try:
            columns = read_columns(read_json(file), variant)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} isn't a whole score of {suite}: score it again") from error
        for name, rows in columns.items():
            keys = keys or list(rows)
            if set(rows) != set(keys):
                other = sorted(set(rows) ^ set(keys))
                raise UserError(
                    f"{file} has other scores than {files[0]}, as {', '.join(other[:3])}: score "
                    f"all with the same options"
                )
            found.setdefault(name, {}).setdefault(seed, rows)
    # Walkers that have nothing to learn come last.
    learned = {file.parent.parent.name for file in files}
    found = dict(sorted(found.items(), key=lambda item: item[0] not in learned))
    seeds = {name: sorted(runs) for name, runs in found.items()}
    if len({tuple(one) for one in seeds.values()}) > 1:
        raise UserError(f"--collect={root}: variants have other seeds: {seeds}")
    content = {"suite": suite, "seeds": next(iter(seeds.values())), "variants": {}}
    for name, runs in found.items():
        rows = {key: [run[key] for run in runs.values()] for key in next(iter(runs.values()))}
        content["variants"][name] = {
            "mean": {key: float(np.mean(row)) for key, row in rows.items()},
            "std": {key: float(np.std(row, ddof=1)) for key, row in rows.items() if len(row) > 1},
            "runs": runs,
        }
    write_json(out, content)
    table = as_table(content)
    out.with_suffix(".md").write_text(table + "\n")
    print(table)
    return content


def as_table(content: dict[str, Any]) -> str:
    """Markdown: a row a score, a column a variant, in percent with the spread over seeds."""
    variants = content["variants"]
    lines = [
        f"Percent, mean ± standard deviation over {len(content['seeds'])} seeds.",
        "",
        "| | " + " | ".join(variants) + " |",
        "|---|" + "---|" * len(variants),
    ]
    for key in next(iter(variants.values()))["mean"]:
        if key.endswith(COUNTED):
            cells = [f"{scores['mean'][key]:g}" for scores in variants.values()]
            lines.append(f"| {key} (number) | " + " | ".join(cells) + " |")
            continue
        cells = []
        for scores in variants.values():
            spread = f" ± {100 * scores['std'][key]:.1f}" if key in scores["std"] else ""
            cells.append(f"{100 * scores['mean'][key]:.1f}{spread}")
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
