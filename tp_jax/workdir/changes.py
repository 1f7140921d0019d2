"""What may change when a run resumes, and what would make it another run.

`RULES` decides it for each config field. `Facts` are what the config doesn't say about the data; a
workdir keeps them in `run.json`, with the changes that were allowed.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.files.atomic import write_json
from tp_jax.files.differences import Difference, differences
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError

RUN = "run.json"
# FREE: changes, and is printed. ASK: makes another run, so that --allow_change must name it. FIXED:
# the weights or the state of the optimizer wouldn't fit.
FREE, ASK, FIXED = "free", "ask", "fixed"
# By field or section of the config; of several that fit, the longest.
RULES = {
    FREE: (
        "autoencoder.dtype", "autoencoder.path", "autoencoder.tile", "checkpoint", "data.dir",
        "data.skip_corrupt", "data.workers", "evaluation", "frozenlake.frames_weight",
        "frozenlake.read_sigma", "log", "mesh", "model.attention", "model.dtype", "model.remat",
        "model.scan_blocks", "model.thinking.balance_weight", "model.thinking.dispatch",
        "model.thinking.halting_epsilon", "model.thinking.ponder_weight",
        "optimizer", "prepare", "sampling", "text", "train.accumulate", "train.batch_size",
        "train.deep_supervision", "train.deterministic", "train.ema_decay",
        "train.hang_seconds", "train.log_every", "train.offload", "train.sample_every",
        "train.samples", "train.steps",
        "validation.batch_size", "validation.dir", "validation.every_steps", "validation.num",
        "validation.split", "validation.times",
    ),
    ASK: (
        "autoencoder.pool", "data.background", "data.columns", "data.flip", "data.source",
        "data.split", "diffusion", "frozenlake.frozen", "frozenlake.sizes", "frozenlake.tile",
        "frozenlake.unseen_sizes", "init.base", "model.base_grid",
        "model.grid_offset", "model.heads", "model.image_size",
        "model.thinking.base_every_step", "model.thinking.base_input",
        "model.thinking.gate_token", "model.thinking.latent_steps",
        "model.thinking.latent_steps_range", "model.thinking.ponder_prior",
        "model.thinking.temperature", "seed", "shapes.difficulty",
        "train.condition_dropout", "validation.fraction", "validation.seed",
    ),
    FIXED: (
        "model.channels", "model.depth", "model.dual_attention_layers", "model.frame",
        "model.kind", "model.max_grid", "model.mlp_ratio", "model.null_class",
        "model.num_classes", "model.patch", "model.pooled_width", "model.qk_norm",
        "model.text_tokens", "model.text_width", "model.time_input", "model.thinking.experts",
        "model.thinking.gate",
        "model.thinking.gate_inputs", "model.thinking.gate_width", "model.thinking.halting",
        "model.thinking.layers",
        "model.thinking.modulate", "model.thinking.rank", "model.thinking.share_across_steps",
        "model.width", "train.trainable",
    ),
}  # fmt: skip
_BY_NAME = {name: rule for rule, names in RULES.items() for name in names}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run learns from, apart from its config; all fields need --allow_change to change.

    Attributes:
      classes: names of the classes, in the order of the labels.
      images: number of records of the data source.
      autoencoder: identity of the autoencoder; None without one.
      latents: identity of prepared latents, with their `mean` and `std`; None without them.
    """

    classes: tuple[str, ...]
    images: int
    autoencoder: str | None
    latents: dict[str, Any] | None


def identify_latents(header: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what identifies prepared latents: a hash of their plan, and statistics.

    Args:
      header: the header as JSON; None without prepared latents.
    """
    if header is None:
        return None
    plan = {k: v for k, v in header["plan"].items() if k != "records_per_shard"}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return {"plan": digest, "mean": list(header["mean"]), "std": list(header["std"])}


def rule_of(name: str) -> str | None:
    """Return the rule of a config field; None if `RULES` has none.

    Example:
      >>> rule_of("optimizer.b1"), rule_of("frozenlake.sizes"), rule_of("model.width")
      ('free', 'ask', 'fixed')
    """
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((_BY_NAME[prefix] for prefix in prefixes if prefix in _BY_NAME), None)


def check_allowed(allowed: Iterable[str], config: ConfigDict) -> set[str]:
    """Check the names in --allow_change, and return them without "config.".

    Raises:
      UserError: a name is unknown, or the weights wouldn't fit after its change.
    """
    names = {name.strip().removeprefix("config.") for name in allowed} - {""}
    fields = set(config_lib.flat(config))
    for name in sorted(names):
        below = [field for field in fields if field == name or field.startswith(f"{name}.")]
        if not below and name not in _FACTS:
            raise UserError(
                f"--allow_change={name}: there is no such field; name fields or sections of the "
                f"config, or {', '.join(_FACTS)}"
            )
        if below and all(rule_of(field) == FIXED for field in below):
            raise UserError(
                f"--allow_change={name}: the weights wouldn't fit after this change; name a new "
                f"workdir"
            )
    return names


def check_changes(
    workdir: epath.Path, changes: Collection[Difference], allowed: Collection[str]
) -> None:
    """Raise a UserError unless all changes of config fields or facts are free or allowed."""
    refused = [change for change in changes if not _may_change(change.name, allowed)]
    if not refused:
        return
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    remedy = "use the old value or name a new workdir"
    if not any(rule_of(change.name) == FIXED for change in refused):
        names = ",".join(dict.fromkeys(_group(change.name) for change in refused))
        remedy = f"use the old value, name a new workdir, or go on with --allow_change={names}"
    raise UserError(
        f"--workdir={workdir} was trained with another config: {as_text(refused[0])}{more}; "
        f"{remedy}"
    )


def _may_change(name: str, allowed: Collection[str]) -> bool:
    rule = rule_of(name)
    named = any(name == other or name.startswith(f"{other}.") for other in allowed)
    return rule == FREE or (named and rule != FIXED)


def _group(name: str) -> str:
    """Return the name to allow: a section if it is in `RULES` as a whole."""
    section = name.partition(".")[0]
    return section if section in _BY_NAME else name


def as_text(change: Difference) -> str:
    """Return a line such as "seed: 0 -> 1"."""
    old, new = (_cut(repr(value)) for value in (change.old, change.new))
    return f"{change.name}: {old} -> {new}"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]} …"


def changed_facts(workdir: epath.Path, facts: Facts) -> list[Difference]:
    """Return the facts that differ from those in the workdir; none if it is of an early version.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / RUN
    if not path.exists():
        return []
    stored = read_json(path, _FACTS, "delete it if you know that the data are the same")
    new = dataclasses.asdict(facts)
    old: dict[str, Any] = {name: stored[name] for name in new}
    old["classes"] = tuple(stored["classes"])
    if old["latents"] and new["latents"] and _same_latents(old["latents"], new["latents"]):
        old["latents"] = new["latents"]
    return [_first_class(change) for change in differences(old, new)]


def read_class_names(workdir: epath.Path) -> tuple[str, ...]:
    """Return the names of the classes that a run learned, in the order of the labels.

    There are none for a run without classes, and for one of an early version of tp_jax.

    Raises:
      UserError: the file that has them is damaged.
    """
    path = workdir / RUN
    if not path.exists():
        return ()
    stored = read_json(path, {"classes": list}, "delete it, and samples show labels, not names")
    return tuple(map(str, stored["classes"]))


def _same_latents(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Compare latents; devices may round those that were prepared again in another way."""
    statistics = ("mean", "std")
    if {k: v for k, v in old.items() if k not in statistics} != {
        k: v for k, v in new.items() if k not in statistics
    }:
        return False
    try:
        return all(np.allclose(old[k], new[k], rtol=0.02, atol=0.02) for k in statistics)
    except (KeyError, TypeError, ValueError):
        return False


def _first_class(change: Difference) -> Difference:
    """Reduce a change of the classes to the first one that differs."""
    if change.name != "classes":
        return change
    old, new = change.old, change.new
    at = next((i for i, pair in enumerate(zip(old, new, strict=False)) if len(set(pair)) > 1), None)
    at = min(len(old), len(new)) if at is None else at

    def shown(names: tuple[str, ...]) -> str:
        return f"{names[at]} ({at} of {len(names)})" if at < len(names) else f"{len(names)} classes"

    return Difference("classes", shown(old), shown(new))


def write_run(workdir: epath.Path, facts: Facts, changes: Iterable[Difference]) -> None:
    """Write the facts, and add the changes that were allowed to those of earlier starts."""
    path = workdir / RUN
    earlier = read_json(path).get("allowed", []) if path.exists() else []
    asked = [as_text(change) for change in changes if rule_of(change.name) != FREE]
    if asked:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        earlier = [*earlier, {"at": now, "changes": asked}]
    write_json(path, dataclasses.asdict(facts) | {"allowed": earlier})


_FACTS = {
    "classes": list,
    "images": int,
    "autoencoder": (str, type(None)),
    "latents": (dict, type(None)),
}
