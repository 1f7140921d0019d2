"""Train steps of thinking only: each dispatch over M experts, and `auto` over T latent steps."""

from collections.abc import Iterator

from tp_jax.messages.errors import UserError
from tp_jax.performance.contenders import changed, train_contender
from tp_jax.performance.measure import Contender, Group
from tp_jax.performance.options import BenchOptions


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield a group for each dispatch, and one over the numbers of latent steps.

    Raises:
      UserError: the model has no thinking layer.
    """
    config = options.config
    if not config.model.thinking.layers:
        raise UserError("--what=dispatch: config.model.thinking.layers is empty: name a layer")
    dispatches = ["auto", "dense", "grouped"]
    dispatches += ["expert_parallel"] if config.mesh.expert not in (0, 1) else []
    for dispatch in dispatches:
        yield _over("experts", options.experts, options, dispatch)
    yield _over("latent_steps", options.latent_steps, options, "auto")


def _over(field: str, values: tuple[int, ...], options: BenchOptions, dispatch: str) -> Group:
    """Return a group over the values of a field, compared to the first of them."""
    letter = {"experts": "M", "latent_steps": "T"}[field]
    contenders: list[Contender] = []
    for value in dict.fromkeys(values):
        config = changed(options.config, "thinking", dispatch=dispatch, **{field: value})
        name, first = f"{dispatch}, {letter}={value}", tuple(c.name for c in contenders[:1])
        contenders.append(train_contender(name, config, compare_to=first))
    return Group(f"{dispatch} over {letter}", tuple(contenders))
