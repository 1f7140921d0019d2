"""The statistics of one block as JSON, from what `collect` added up.

S sampler steps, T latent steps, N vision tokens on a grid of rows × columns, D width, M experts,
G groups.
"""

import dataclasses
from typing import Any

import numpy as np

from tp_jax.analysis import dependence, statistics, trajectories
from tp_jax.analysis.collect import BlockTotals, Collected
from tp_jax.analysis.samples import Samples
from tp_jax.models.parameters import Params
from tp_jax.thinking.config import ThinkingConfig

# Samples for any information, and samples of each group for that of the group.
MIN_SAMPLES, MIN_GROUP_SAMPLES = 10, 5
# Clusters of tokens by content, and tokens that are needed for them.
CLUSTERS, MIN_CLUSTERED = 16, 100
# Tokens whose trajectories are given, and tokens from which the directions are found.
TRAJECTORIES, PROJECTED = 100, 500


class LeftOut:
    """What an analysis leaves out, and why; each reason is kept once."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], None] = {}

    def add(self, part: str, why: str) -> None:
        """Leave out a part, such as "kept"."""
        self._reasons[part, why] = None

    def as_json(self) -> list[dict[str, str]]:
        """Return [{"part", "why"}]."""
        return [{"part": part, "why": why} for part, why in self._reasons]


def as_json(values: Any) -> Any:
    """Return an array as nested lists of numbers with six digits, NaN as None."""
    if isinstance(values, np.ndarray):
        return [as_json(value) for value in values]
    if isinstance(values, float | np.floating):
        return float(f"{values:.6g}") if np.isfinite(values) else None
    return int(values)


def describe_blocks(
    collected: Collected,
    samples: Samples,
    params: Params,
    config: ThinkingConfig,
    grid: tuple[int, int],
    left_out: LeftOut,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the statistics of every block, as the part "blocks" of an analysis.

    Args:
      collected: totals of all samples.
      samples: what was sampled.
      params: parameters of the model.
      config: where and how it thinks; `halting` is that of these samples.
      grid: rows and columns of the tokens of the image. They are the last tokens, if there are
        others.
      left_out: gets what can't be computed.
      seed: seed of permutations and clusters.
    """
    described = {}
    for block, totals in collected.blocks.items():
        found = _Block(totals, collected, samples, config, grid, left_out, seed)
        layer = params["thinking"][f"layer_{block}"]
        described[str(block)] = {
            **found.routing(),
            "information": found.information(),
            **found.halting(),
            **found.movement(),
            "similarity": found.similarity(layer),
            "trajectories": found.trajectories(),
        }
    return described


@dataclasses.dataclass(frozen=True)
class _Block:
    totals: BlockTotals
    collected: Collected
    samples: Samples
    config: ThinkingConfig
    grid: tuple[int, int]
    left_out: LeftOut
    seed: int

    @property
    def latent_steps(self) -> int:
        return self.totals.by_step.shape[1]

    @property
    def latent_steps_taken(self) -> int:
        """Return the number of latent steps that any token takes: T unless all tokens halt."""
        return int(self.totals.by_step.any(axis=(0, 2)).sum())

    def halting(self) -> dict[str, Any]:
        """Return how many latent steps the tokens take, by timestep and by place."""
        if self.config.halting == "none":
            names = "latent_steps", "latent_steps_by_place"
            for name in names:
                self.left_out.add(name, "tokens don't halt")
            return dict.fromkeys(names)
        steps, num, (rows, columns) = len(self.totals.by_step), self.totals.num, self.grid
        # A token that takes a latent step takes an expert, and is counted once.
        tokens = self.totals.by_place.shape[1]
        by_place = self.totals.by_place.sum((0, 2))[-rows * columns :] / (steps * num)
        return {
            "latent_steps": as_json(self.totals.by_step.sum((1, 2)) / (num * tokens)),
            "latent_steps_by_place": as_json(by_place.reshape(rows, columns)),
        }

    def routing(self) -> dict[str, Any]:
        """Return entropy, kept experts, use and collapse."""
        totals = self.totals
        by_step, by_place = statistics.shares(totals.by_step), statistics.shares(totals.by_place)
        use = statistics.shares(totals.by_step.sum(0))[: self.latent_steps_taken]
        rows, columns = self.grid
        # Latent steps that no token takes have no shares, and are left out.
        taken = self.latent_steps_taken
        by_place = by_place[:taken, -rows * columns :].swapaxes(1, 2)
        by_group = None
        if self.samples.groups is None:
            self.left_out.add("use_by_group", self.samples.left_out["group"])
        else:
            by_group = as_json(statistics.shares(totals.by_group[:, :taken]))
        return {
            "entropy": as_json(totals.mean("entropy")),
            "kept": self._over_steps("kept", 2, "there is one latent step"),
            "use": as_json(by_step),
            "use_by_group": by_group,
            "use_by_place": as_json(by_place.reshape(*by_place.shape[:2], rows, columns)),
            "effective_experts": as_json(statistics.effective_experts(use)),
            "dead_experts": [statistics.dead_experts(shares) for shares in use],
        }

    def _over_steps(self, name: str, needed: int, why: str) -> Any:
        """Return a mean that needs a number of latent steps; None, and say why, with fewer."""
        if self.latent_steps < needed:
            self.left_out.add(name, why)
            return None
        return as_json(self.totals.mean(name))

    def movement(self) -> dict[str, Any]:
        """Return how far tokens move over the latent steps."""
        one = "there is one latent step, so that no token moves"
        found = {
            "moves": self._over_steps("moves", 2, one),
            "ratios": self._over_steps("ratios", 3, "it needs three latent steps"),
            "together": self._over_steps("together", 2, one),
        }
        if found["together"] is not None:
            found["together"] = [value for (value,) in found["together"]]
        if self.latent_steps > 1 and not self.totals.mean("moves").any():
            for name in ("ratios", "together"):
                self.left_out.add(name, "the experts are still zero, so that no token moves")
            found |= {"ratios": None, "together": None}
        return found

    def information(self) -> dict[str, Any] | None:
        """Return the mutual information of the expert with each variable."""
        if self.config.experts == 1:
            self.left_out.add("information", "there is one expert")
            return None
        if self.totals.num < MIN_SAMPLES:
            self.left_out.add("information", f"it needs {MIN_SAMPLES} samples: raise --num")
            return None
        rng = np.random.default_rng(self.seed)
        units, totals = self.totals.units.kept, self.totals
        tables = {
            "timestep": ("step", totals.by_step.sum(1)),
            "latent_step": ("latent_step", totals.by_step.sum(0)),
            "place": ("place", totals.by_place.sum(0)),
        }
        found: dict[str, Any] = {}
        for name, (kept, table) in tables.items():
            if len(table) == 1:
                self.left_out.add(f"information with the {name.replace('_', ' ')}", "there is one")
                continue
            permuted = dependence.permute_levels(units[kept], rng)
            found[name] = dependence.information(table, permuted, units[kept].sum())
        found |= {"group": self._group(rng), "content": self._content(rng)}
        return {
            name: {key: as_json(value) for key, value in dataclasses.asdict(estimates).items()}
            for name, estimates in found.items()
            if estimates
        }

    def _group(self, rng: np.random.Generator) -> dependence.Information | None:
        groups, units = self.samples.groups, self.totals.units.kept
        if groups is None:
            why = self.samples.left_out["group"]
        elif len(groups.names) == 1:
            why = f"there is one {groups.kind}"
        elif self.totals.num < MIN_GROUP_SAMPLES * len(groups.names):
            needed = MIN_GROUP_SAMPLES * len(groups.names)
            why = f"{len(groups.names)} groups need {needed} samples: raise --num"
        else:
            choices, members = units["latent_step"].sum(1), units["group"].astype(np.int64)
            permuted = dependence.permute_units(choices, members, rng)
            table = self.totals.by_group.sum(1)
            return dependence.information(table, permuted, permuted[0].sum())
        self.left_out.add("information with the group", why)
        return None

    def _content(self, rng: np.random.Generator) -> dependence.Information | None:
        kept, experts = self.totals.tokens.kept, self.config.experts
        if len(kept["tokens"]) < MIN_CLUSTERED:
            why = f"clusters need {MIN_CLUSTERED} tokens: raise --num"
            self.left_out.add("information with the content", why)
            return None
        labels = trajectories.content_clusters(kept["tokens"], CLUSTERS, self.seed)
        table = dependence.cross_table(labels, kept["expert"], CLUSTERS, experts)
        permuted = dependence.permute_labels(labels, kept["expert"], CLUSTERS, experts, rng)
        return dependence.information(table, permuted)

    def similarity(self, layer: Any) -> dict[str, Any] | None:
        """Return how alike the Δ of the experts are."""
        if self.config.experts == 1:
            self.left_out.add("similarity", "there is one expert")
            return None
        inputs = self.totals.inputs.kept["inputs"]  # [K, P, T, D]
        name = "experts" if self.config.share_across_steps else "step_experts"
        lora_a, lora_b = (np.asarray(layer[name][key]) for key in ("lora_a", "lora_b"))
        width = inputs.shape[-1]
        if self.config.share_across_steps:
            found = trajectories.similarity(lora_a, lora_b, inputs.reshape(-1, width))
        else:
            # The last latent step uses the last experts, also if there are fewer steps.
            steps = [*range(self.latent_steps - 1), len(lora_a) - 1]
            each = [
                trajectories.similarity(
                    lora_a[step], lora_b[step], inputs[:, :, t].reshape(-1, width)
                )
                for t, step in enumerate(steps)
            ]
            found = np.mean(each, axis=0)
        if not np.isfinite(found).any():
            self.left_out.add("similarity", "the experts are still zero")
            return None
        return dict(zip("qkv", as_json(found), strict=True))

    def trajectories(self) -> list[dict[str, Any]] | None:
        """Return the main directions of the tokens' movement, at each step that was kept."""
        if self.latent_steps == 1:
            self.left_out.add("trajectories", "there is one latent step")
            return None
        kept, described = self.totals.tokens.kept, []
        for number, step in enumerate(self.collected.steps):
            tokens = kept["tokens"][:PROJECTED, number]  # [K, T, D]
            flat = tokens.reshape(-1, tokens.shape[-1])
            points, explained = trajectories.principal_components(flat)
            points = points.reshape(*tokens.shape[:2], 2)[:TRAJECTORIES]
            described.append(
                {
                    "timestep": as_json(self.collected.timesteps[step]),
                    "explained": as_json(explained),
                    "points": as_json(points),
                    "expert": as_json(kept["expert"][:TRAJECTORIES, number]),
                }
            )
        return described
