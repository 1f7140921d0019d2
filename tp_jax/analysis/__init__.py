"""What the gate of a thinking model does: statistics of its choices, and the analysis of a workdir.

The statistics are pure functions of the arrays that `tp_jax.Model.trace` returns:

    routing = model.trace(labels=[3, 5, 8], tokens=True)
    analysis.use(routing.experts[1], num=2)  # [sampler step, latent step, expert]
"""

from tp_jax.analysis.dependence import (
    Information,
    cross_table,
    information,
    miller_madow,
    mutual_information,
    permute_labels,
    permute_levels,
    permute_units,
)
from tp_jax.analysis.statistics import (
    count_experts,
    dead_experts,
    effective_experts,
    entropy,
    kept,
    latent_steps_used,
    mean_of_live,
    shares,
    use,
    use_by_group,
    use_by_place,
    without_temperature,
)
from tp_jax.analysis.trajectories import (
    content_clusters,
    moves,
    principal_components,
    ratios,
    similarity,
    together,
)

__all__ = [
    "Information",
    "content_clusters",
    "count_experts",
    "cross_table",
    "dead_experts",
    "effective_experts",
    "entropy",
    "information",
    "kept",
    "latent_steps_used",
    "mean_of_live",
    "miller_madow",
    "moves",
    "mutual_information",
    "permute_labels",
    "permute_levels",
    "permute_units",
    "principal_components",
    "ratios",
    "shares",
    "similarity",
    "together",
    "use",
    "use_by_group",
    "use_by_place",
    "without_temperature",
]
