"""Read the parts of an analysis document (`analysis.json`), any of which may be null or missing.

Axis letters: S timesteps of the sampler, T latent steps, M experts, G groups (classes or words).
"""

from typing import Any

import numpy as np

Document = dict[str, Any]
# The variables of `information`, in the order in which they are drawn, and their names.
VARIABLES = {
    "timestep": "timestep",
    "latent_step": "latent step",
    "group": "class",
    "place": "place",
    "content": "content",
}


def part(document: Document, block: str, key: str) -> np.ndarray | None:
    """Return one statistic of a block.

    Args:
      document: the analysis.
      block: a key of `document["blocks"]`.
      key: name of the statistic, such as "entropy".

    Returns:
      A float64 array in which null is NaN; None if the statistic is missing, empty or all null.
    """
    found = document["blocks"][block].get(key)
    if found is None:
        return None
    values = np.array(found, np.float64)
    return values if values.size and np.isfinite(values).any() else None


def parts(document: Document, key: str) -> dict[str, np.ndarray]:
    """Return one statistic of every block that has it, as `part` does."""
    found = {block: part(document, block, key) for block in document.get("blocks") or {}}
    return {block: values for block, values in found.items() if values is not None}


def information(document: Document) -> dict[str, dict[str, dict[str, float]]]:
    """Return {block: {variable: {"bits", "corrected", "permuted_mean", "permuted_high"}}}.

    Blocks and variables without information are left out; the variables are in the order of
    `VARIABLES`.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for block, values in (document.get("blocks") or {}).items():
        given = values.get("information") or {}
        kept = {name: given[name] for name in VARIABLES if given.get(name)}
        kept = {name: entry for name, entry in kept.items() if entry.get("corrected") is not None}
        if kept:
            found[block] = kept
    return found


def above_chance(entry: dict[str, float]) -> float:
    """Return by how many bits an entry of `information` exceeds the mean over permutations.

    Tokens of a sample resemble each other, which permutations of whole samples take into account,
    and the bias correction doesn't. Without permutations, return the bias-corrected estimate.
    """
    if entry.get("permuted_mean") is None:
        return entry["corrected"]
    return max(0.0, entry["bits"] - entry["permuted_mean"])


def variable_name(document: Document, variable: str) -> str:
    """Return what to call a variable of `information`; groups are classes or words."""
    if variable == "group" and document["run"].get("group_kind") == "word":
        return "word"
    return VARIABLES[variable]


def similarities(document: Document) -> dict[str, dict[str, np.ndarray]]:
    """Return {block: {"q" | "k" | "v": float [M, M]}} of the blocks that have it."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for block, values in (document.get("blocks") or {}).items():
        given = values.get("similarity") or {}
        kept = {name: np.array(given[name], np.float64) for name in "qkv" if given.get(name)}
        if kept:
            found[block] = kept
    return found


def kept_by_chance(document: Document, block: str) -> np.ndarray | None:
    """Return the share of tokens that would keep their expert if latent steps were independent.

    It is Σ_m use_t(m)·use_{t+1}(m): high if one expert takes most tokens at both latent steps.

    Returns:
      Float64 [S, T-1], or None if the use isn't known or there is one latent step.
    """
    use = part(document, block, "use")
    if use is None or use.shape[1] < 2:
        return None
    return (use[:, :-1] * use[:, 1:]).sum(-1)


def group_order(document: Document) -> list[int]:
    """Return the numbers of the groups, those that are routed most differently first.

    A group's difference is the total variation distance between its use of the experts and the
    mean over all groups, averaged over latent steps and blocks. Groups without tokens are left out.
    """
    distances = [
        np.abs(use - group_mean(use)).sum(-1).mean(-1) / 2
        for use in parts(document, "use_by_group").values()
        if _seen(use).any()
    ]
    if not distances:
        return []
    distance = np.mean(distances, 0)
    return [int(i) for i in np.argsort(-distance, kind="stable") if np.isfinite(distance[i])]


def _seen(use: np.ndarray) -> np.ndarray:
    """Return which groups have tokens: bool [G] of use [G, T, M]."""
    return np.asarray(np.isfinite(use).all(axis=(1, 2)))


def group_mean(use: np.ndarray) -> np.ndarray:
    """Return the mean of use [G, T, M] over the groups that have tokens: [T, M]."""
    return use[_seen(use)].mean(0)


def mean(values: np.ndarray | None) -> float | None:
    """Return the mean without NaN; None without a finite value."""
    if values is None or not np.isfinite(values).any():
        return None
    return float(values[np.isfinite(values)].mean())


def thinking_off(document: Document) -> dict[str, Any] | None:
    """Return the intervention that switches thinking off, if there is one."""
    for intervention in document.get("interventions") or []:
        name = intervention["name"].lower()
        if "thinking" in name and ("off" in name or "without" in name):
            return intervention
    return None
