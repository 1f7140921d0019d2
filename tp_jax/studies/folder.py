"""The files in the folder of a study that say what it is, and what became of a cell."""

from typing import Any

from etils import epath

from tp_jax import config as config_lib
from tp_jax.files.atomic import write_json
from tp_jax.files.differences import first_difference
from tp_jax.files.folders import can_resume
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.studies.plan import Plan
from tp_jax.workdir.changes import as_text

STUDY, RECORD, LOG = "study.json", "cell.json", "log.txt"


def write_study(plan: Plan) -> None:
    """Write what identifies a study; an earlier start of it may have had fewer seeds.

    Raises:
      UserError: the folder holds another study, or this one with more seeds.
    """
    out = plan.request.out
    path, wanted = out / STUDY, describe(plan)
    if can_resume(out, path, f"--out={out}", "tp_jax.ablate"):
        fields = {"study": str, "seeds": int, "base": str, "variants": dict}
        _check_same(read_json(path, fields), wanted, f"--out={out}")
    write_json(path, wanted)


def describe(plan: Plan) -> dict[str, Any]:
    """Return what identifies a study, as JSON."""
    variants = {}
    for variant in plan.study.variants:
        fields = config_lib.flat(plan.configs[variant.name])
        if variant.base_of:
            del fields["init.base"]  # It is in this folder, which may be moved.
        listed = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        variants[variant.name] = {"flags": dict(variant.flags), "config": listed}
    request = plan.request
    return {
        "study": request.study, "seeds": request.seeds, "base": request.base, "variants": variants
    }  # fmt: skip


def _check_same(old: dict[str, Any], new: dict[str, Any], name: str) -> None:
    """Raise a UserError unless a folder's study is the same, with no more seeds."""
    remedy = "name another folder"
    for field in ("study", "base"):
        if old[field] != new[field]:
            raise UserError(
                f"{name} has a study with --{field}={old[field]}, not {new[field]}: {remedy}"
            )
    if old["variants"].keys() != new["variants"].keys():
        different = sorted(old["variants"].keys() ^ new["variants"].keys())
        raise UserError(
            f"{name} has the study {new['study']} with other variants (for example "
            f"{different[0]}): {remedy}"
        )
    for variant, described in new["variants"].items():
        earlier = old["variants"][variant]
        # Fields that a later version of tp_jax has added don't make it another study.
        known = earlier["config"].keys() & described["config"].keys()
        change = first_difference(
            earlier["flags"] | {key: earlier["config"][key] for key in sorted(known)},
            described["flags"] | {key: described["config"][key] for key in sorted(known)},
        )
        if change:
            raise UserError(
                f"{name} has this study with another config ({variant}: {as_text(change)}): "
                f"{remedy}, or use the old value"
            )
    if old["seeds"] > new["seeds"]:
        raise UserError(
            f"{name} has this study with {old['seeds']} seeds, not {new['seeds']}: give "
            f"--seeds={old['seeds']} or more, or {remedy}"
        )


def read_record(folder: epath.Path) -> dict[str, Any]:
    """Return the record of a cell: seconds of each command, and how the last one failed."""
    path = folder / RECORD
    return read_json(path) if path.exists() else {}
