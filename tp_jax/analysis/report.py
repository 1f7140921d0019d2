"""Write an analysis as one HTML file."""

import html
import json
from typing import Any

from etils import epath

from tp_jax.files.atomic import write_text


def write_report(document: dict[str, Any], folder: epath.Path) -> None:
    """Write `report.html` to a folder.

    Args:
      document: the content of `analysis.json`.
      folder: the folder, which has its pictures.
    """
    text = html.escape(json.dumps(document["run"]))
    write_text(folder / "report.html", f"<!doctype html><title>Analysis</title><pre>{text}</pre>\n")
