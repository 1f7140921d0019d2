"""Compare the files of a workdir, an exported model or a converted folder with their SHA-256."""

from etils import epath

from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.pretrained.folder import DESCRIPTION_FILE, load_folder
from tp_jax.workdir.exported import file_problem, is_exported, read_exported
from tp_jax.workdir.integrity import CHECKPOINTS, find_damage, is_verified


def verify(folder: epath.Path) -> None:
    """Read all weights of a folder, and compare their SHA-256 with those that were written.

    Args:
      folder: a workdir, whose checkpoints are all checked; an exported model; or a folder of
        converted weights.

    Raises:
      UserError: a file is damaged, missing or left over, or the folder is none of these.
    """
    if is_exported(folder):
        found = {name: file_problem(folder / name, sum)
                 for name, sum in read_exported(folder).files.items()}  # fmt: skip
    elif (folder / DESCRIPTION_FILE).exists():
        kind = read_json(folder / DESCRIPTION_FILE, {"kind": str})["kind"]
        load_folder(folder, kind)
        found = {f"weights of {kind}": None}
    elif (folder / CHECKPOINTS).is_dir():
        found = _checkpoints(folder)
    else:
        raise UserError(
            f"{folder} has no checkpoints, and is neither an exported model nor a folder of "
            f"converted weights: name one of these"
        )
    for name, problem in found.items():
        say(f"{name}: {problem or 'as written'}")
    damaged = [name for name, problem in found.items() if problem]
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(found)} are not as written: {', '.join(damaged)}; restore "
            f"them from a copy, or remove them"
        )


def _checkpoints(workdir: epath.Path) -> dict[str, str | None]:
    """Return what is wrong with each checkpoint of a workdir; None if nothing is."""
    found: dict[str, str | None] = {}
    names = [path.name for path in (workdir / CHECKPOINTS).iterdir()]
    for step in sorted(int(name) for name in names if name.isdigit()):
        try:
            problem = find_damage(workdir, step, workdir / CHECKPOINTS / str(step))
        except UserError as error:
            problem = str(error)
        if problem is None and not is_verified(workdir, step):
            problem = (
                "it has no checksums, because it wasn't saved completely, or by an early version"
            )
        found[f"checkpoint {step}"] = problem
    if not found:
        raise UserError(f"{workdir} has no checkpoint: train there first")
    return found
