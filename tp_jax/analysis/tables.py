"""Tables of the report, from an analysis document.

Every function takes the document and returns a table, or None if the document lacks the data. A
table has at most about `MAX_CELLS` cells; longer ones show a part, and their note says which.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tp_jax.analysis.document import (
    Document,
    group_order,
    information,
    kept_by_chance,
    parts,
    similarities,
    variable_name,
)
from tp_jax.pictures.tables import picked

MAX_CELLS = 2400


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts and numbers.

    Attributes:
      header: names of the columns.
      rows: the cells, one for each column; a number is a float or int, a missing one is None.
      note: what was left out; empty for nothing.
    """

    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    note: str = ""


def _finite(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _over_timesteps(
    document: Document,
    values: dict[str, np.ndarray],
    header: Sequence[str],
    rows_of: Callable[[str, int], list[tuple[Any, ...]]],
) -> Table:
    """Make a table over blocks and timesteps; many timesteps are thinned evenly.

    Args:
      document: the analysis.
      values: the blocks' statistics, float [S, …].
      header: names of the columns after "block" and "timestep".
      rows_of: given a block and the number of a timestep, returns the other columns of its rows.
    """
    timesteps = document["timesteps"]
    per_timestep = sum(len(rows_of(block, 0)) for block in values) * (2 + len(header))
    shown = picked(len(timesteps), max(2, MAX_CELLS // per_timestep))
    rows = [
        (f"{block}", float(timesteps[s]), *row)
        for block in values
        for s in shown
        for row in rows_of(block, s)
    ]
    note = "" if len(shown) == len(timesteps) else f"{len(shown)} of {len(timesteps)} timesteps"
    return Table(("block", "timestep", *header), rows, note)


def _lines_table(document: Document, key: str, names: Callable[[int], str]) -> Table | None:
    values = parts(document, key)
    if not values:
        return None
    header = [names(i) for i in range(next(iter(values.values())).shape[1])]
    return _over_timesteps(document, values, header, lambda b, s: [tuple(_finite(values[b][s]))])


def entropy_table(document: Document) -> Table | None:
    """Return the entropy in nats by block and timestep, a column for each latent step."""
    return _lines_table(document, "entropy", lambda i: f"latent step {i + 1}")


def latent_steps_table(document: Document) -> Table | None:
    """Return the mean latent steps of a token, and the FLOPs that its experts need.

    FLOPs are relative to those of the same tokens at all latent steps.
    """
    values, latent_steps = parts(document, "latent_steps"), document["run"]["latent_steps"]
    if not values:
        return None

    def rows_of(block: str, s: int) -> list[tuple[Any, ...]]:
        used = float(values[block][s])
        return [(used, 100 * used / latent_steps)]

    return _over_timesteps(document, values, ["mean latent steps", "expert FLOPs (%)"], rows_of)


def latent_steps_by_place_table(document: Document) -> Table | None:
    """Return the lowest, mean and highest mean number of latent steps over the picture."""
    values = parts(document, "latent_steps_by_place")
    if not values:
        return None
    rows = [
        (block, float(used.min()), float(used.mean()), float(used.max()), _place(used))
        for block, used in values.items()
    ]
    return Table(("block", "lowest", "mean", "highest", "highest at"), rows)


def _place(values: np.ndarray) -> str:
    """Return where in a picture [rows, columns] the highest value is."""
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    return f"row {row + 1}, column {column + 1}"


def moves_table(document: Document) -> Table | None:
    """Return the relative moves by block and timestep, a column for each latent step."""
    return _lines_table(document, "moves", lambda i: f"latent step {i + 1}")


def ratios_table(document: Document) -> Table | None:
    """Return the ratios of successive moves by block and timestep."""
    return _lines_table(document, "ratios", lambda i: f"move {i + 2} : move {i + 1}")


def together_table(document: Document) -> Table | None:
    """Return the mean cosine between displacements by block and timestep."""
    values = parts(document, "together")
    if not values:
        return None
    return _over_timesteps(
        document, values, ["mean cosine"], lambda b, s: [tuple(_finite(values[b][s : s + 1]))]
    )


def kept_table(document: Document) -> Table | None:
    """Return the share of tokens that keep their expert, and that expected by chance."""
    values = parts(document, "kept")
    if not values:
        return None
    chance = {block: kept_by_chance(document, block) for block in values}

    def rows_of(block: str, s: int) -> list[tuple[Any, ...]]:
        expected = chance[block]
        by_chance = [None] * values[block].shape[1] if expected is None else _finite(expected[s])
        pairs = zip(_finite(values[block][s]), by_chance, strict=True)
        return [(f"{t} → {t + 1}", *pair) for t, pair in enumerate(pairs, 1)]

    return _over_timesteps(document, values, ["latent steps", "kept", "by chance"], rows_of)


def use_table(document: Document) -> Table | None:
    """Return the share of tokens of each expert by block, timestep and latent step."""
    values = parts(document, "use")
    if not values:
        return None
    experts = next(iter(values.values())).shape[2]
    return _over_timesteps(
        document,
        values,
        ["latent step", *(f"expert {m}" for m in range(experts))],
        lambda b, s: [(t, *_finite(use)) for t, use in enumerate(values[b][s], 1)],
    )


def group_table(document: Document) -> Table | None:
    """Return the share of tokens of each expert by group, the most different groups first.

    Where few groups would fit, the shares are the mean over latent steps.
    """
    values, order = parts(document, "use_by_group"), group_order(document)
    if not order:
        return None
    _, latent_steps, experts = next(iter(values.values())).shape
    kind = variable_name(document, "group")
    header = (kind, "block", "latent step", *(f"expert {m}" for m in range(experts)))
    names = [str(t + 1) for t in range(latent_steps)]
    cells = len(header) * len(values)  # of a group at a latent step
    if min(5, len(order)) * cells * latent_steps > MAX_CELLS:
        names = ["mean"]
        values = {block: use.mean(1, keepdims=True) for block, use in values.items()}
    limit = max(5, MAX_CELLS // (cells * len(names)))
    rows = [
        (str(document["run"]["groups"][group]), block, name, *_finite(use[group, t]))
        for group in order[:limit]
        for block, use in values.items()
        for t, name in enumerate(names)
    ]
    note = f"the {limit} most different of {len(order)}" if len(order) > limit else ""
    return Table(header, rows, note)


def place_table(document: Document) -> Table | None:
    """Return the lowest, mean and highest share of each expert over the picture."""
    values = parts(document, "use_by_place")
    if not values:
        return None
    header = ("block", "latent step", "expert", "lowest", "mean", "highest", "highest at")
    rows = []
    for block, use in values.items():
        for t, m in np.ndindex(*use.shape[:2]):
            shares = use[t, m]
            if not np.isfinite(shares).any():
                continue
            numbers = np.array([np.nanmin(shares), np.nanmean(shares), np.nanmax(shares)])
            rows.append((block, t + 1, int(m), *_finite(numbers), _place(shares)))
    limit = MAX_CELLS // len(header)
    note = f"the first {limit} of {len(rows)} rows" if len(rows) > limit else ""
    return Table(header, rows[:limit], note)


def information_table(document: Document) -> Table | None:
    """Return the mutual information of the expert with each variable, in bits."""
    values = information(document)
    if not values:
        return None
    keys = ("bits", "corrected", "permuted_mean", "permuted_high")
    header = (
        "block", "variable", "measured (bits)", "bias-corrected (bits)", "permuted, mean (bits)",
        "permuted, 97.5 % (bits)",
    )  # fmt: skip
    rows = [
        (block, variable_name(document, name), *(entry.get(key) for key in keys))
        for block, found in values.items()
        for name, entry in found.items()
    ]
    return Table(header, rows)


def effective_table(document: Document) -> Table | None:
    """Return the effective number of experts and the dead experts by block and latent step."""
    values = parts(document, "effective_experts")
    if not values:
        return None
    rows = []
    for block, effective in values.items():
        dead = document["blocks"][block].get("dead_experts") or [[]] * len(effective)
        for t, (value, names) in enumerate(zip(_finite(effective), dead, strict=True), 1):
            rows.append((block, t, value, ", ".join(map(str, names)) or "none"))
    return Table(("block", "latent step", "effective experts", "dead experts"), rows)


def similarity_table(document: Document) -> Table | None:
    """Return the mean cosine of each pair of experts; of many, the most similar by ΔV."""
    values = similarities(document)
    if not values:
        return None
    rows = []
    for block, found in values.items():
        for i, j in zip(*np.triu_indices(document["run"]["experts"], 1), strict=True):
            cosines = _finite([found[n][i, j] if n in found else np.nan for n in "qkv"])
            rows.append((block, f"{i} and {j}", *cosines))
    header, limit = ("block", "experts", "ΔQ", "ΔK", "ΔV"), MAX_CELLS // 5
    note = f"the {limit} most similar pairs of {len(rows)}, by ΔV" if len(rows) > limit else ""
    if note:
        rows = sorted(rows, key=lambda row: -2.0 if row[-1] is None else row[-1], reverse=True)
    return Table(header, rows[:limit], note) if rows else None


def trajectory_table(document: Document) -> Table | None:
    """Return how much variance the two components explain, by block and timestep."""
    rows = []
    for block, values in (document.get("blocks") or {}).items():
        for one in values.get("trajectories") or []:
            points = np.array(one["points"], np.float64)
            length = np.linalg.norm(points[:, -1] - points[:, 0], axis=-1).mean()
            rows.append((block, one["timestep"], *one["explained"], len(points), float(length)))
    header = (
        "block", "timestep", "variance on PC 1", "variance on PC 2", "tokens",
        "mean distance ã⁰ to the last, in the plane",
    )  # fmt: skip
    return Table(header, rows[: MAX_CELLS // len(header)]) if rows else None


def intervention_table(document: Document) -> Table | None:
    """Return the interventions' mean pixel difference and score."""
    found = document.get("interventions") or []
    rows = [
        (one["name"], one["what"], one.get("difference"), one.get("score"), one.get("score_name"))
        for one in found
    ]
    header = ("intervention", "what was done", "difference (grey levels)", "score", "name of score")
    return Table(header, rows) if rows else None


def worst_table(document: Document) -> Table | None:
    """Return the samples with the lowest scores."""
    rows = [(one["what"], one.get("score")) for one in document.get("worst") or []]
    return Table(("sample", "score"), rows) if rows else None
