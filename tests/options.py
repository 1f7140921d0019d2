"""List every config key and flag with its default. Run this file to write golden/options.json:

PYTHONPATH=tests python tests/options.py
"""

import json
import pathlib
import re

from conftest import run_entry

from tp_jax.config import default, flat
from tp_jax.diffusion import OBJECTIVES
from tp_jax.evals import SUITES
from tp_jax.models import MODELS

GOLDEN = pathlib.Path(__file__).parent / "golden" / "options.json"
ENTRIES = ("main", "sample", "analyze", "ablate", "prepare", "convert", "export", "bench", "aot")


def config_keys():
    """Defaults by config key, for each pair of model and objective, such as "dit, gaussian".

    All pairs but the first have only the keys whose defaults differ from those of the first pair.
    """
    found, first = {}, {}
    for model in MODELS:
        for diffusion in OBJECTIVES:
            fields = {key: repr(value) for key, value in flat(default(model, diffusion)).items()}
            name = f"{model}, {diffusion}"
            found[name] = {k: v for k, v in fields.items() if first.get(k) != v}
            found[name] |= {k: "not there" for k in first if k not in fields}
            first = first or fields
    return found


def entry_flags(entry, *arguments):
    """Defaults by flag, as `--help` of an entry lists them."""
    code, stdout, _ = run_entry(entry, *arguments, "--help")
    assert code == 0
    found = {}
    # The list of flags follows the usage.
    for block in re.split(r"\n(?=  --)", stdout.partition(f"\n{entry}:\n")[2]):
        name = re.match(r"\s*--((?:\[no\])?[\w.]+)", block)[1]
        value = re.search(r"\(default: '(.*?)'\)", block, re.DOTALL)
        found[name] = value[1] if value else None
    return found


def options():
    """All config keys and flags."""
    flags = {entry: entry_flags(entry) for entry in ENTRIES}
    flags |= {f"evaluate {name}": entry_flags("evaluate", f"--suite={name}") for name in SUITES}
    return {"config": config_keys(), "flags": flags}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(options(), indent=1) + "\n")
