"""DPG-Bench's prompts.

Source: TencentQQGYLab/ELLA (Hu et al. 2024, arXiv:2403.05135).
"""

from etils import epath

from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError

NUM_PROMPTS = 1065  # in the published benchmark


def read_prompts(folder: epath.Path) -> list[Prompt]:
    """Read the prompts `<item_id>.txt`, sorted by file name.

    Args:
      folder: folder with the files, or with a subfolder `prompts` that has them.

    Raises:
      UserError: the folder has no prompts, or one is empty.
    """
    inner = folder / "prompts"
    where = inner if inner.is_dir() else folder
    files = sorted(where.glob("*.txt")) if where.is_dir() else []
    if not files:
        raise UserError(f"{where}: has no prompts <item_id>.txt: give DPG-Bench's prompts folder")
    prompts = []
    for index, file in enumerate(files):
        text = read_text(file).strip()
        if not text:
            raise UserError(f"{file}: the prompt is empty")
        prompts.append(Prompt(index, file.name.removesuffix(".txt"), text))
    return prompts
