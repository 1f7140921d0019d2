"""FLOPs of a traced program, including recomputation (rematerialization).

Only matrix products are counted, a multiply-add as two FLOPs. Unlike XLA's own cost analysis, this
counts the body of a loop as often as the loop runs.
"""

import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def traced_flops(jaxpr: Any) -> float:
    """Return the FLOPs of a jaxpr, summed over all devices.

    The body of a `while` loop counts once, because its trip count depends on the data. Of the
    branches of a conditional, the most expensive one counts.

    Raises:
      NotImplementedError: the program has a convolution.
    """
    # What nobody uses is never computed, such as the results that a checkpoint saved.
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _flops(used)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot_flops(equation)
        elif name.startswith("ragged_dot"):
            rows, inner = equation.invars[0].aval.shape
            total += 2 * rows * inner * equation.outvars[0].aval.shape[-1]
        elif name == "conv_general_dilated":
            raise NotImplementedError("convolutions aren't counted, as DiT and MMDiT have none")
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"])
        elif name == "cond":
            total += max(_flops(branch) for branch in params["branches"])
        elif name == "pallas_call":
            # A kernel whose grid depends on the data isn't counted: the branch for other platforms
            # computes the same and is.
            grid = params["grid_mapping"].grid
            if all(isinstance(side, int) for side in grid):
                total += math.prod(grid) * _flops(params["jaxpr"])
        elif name == "shard_map":
            total += params["mesh"].size * _flops(params["jaxpr"])
        else:
            total += sum(_flops(inner) for inner in _inner_jaxprs(params))
    return total


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(leaf)]


def _is_jaxpr(leaf: Any) -> bool:
    return isinstance(leaf, (core.Jaxpr, core.ClosedJaxpr))
