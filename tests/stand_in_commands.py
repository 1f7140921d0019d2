"""Stands in for `python -m` in tests of studies: trains and evaluates nothing, in no time.

It is run as `python stand_in_commands.py MODULE --flag=value …`. Environment variables:

  STAND_IN_CALLS  file that every call is appended to
  STAND_IN_FAILS  cells that fail, such as "random/1 lora/0"
  STAND_IN_SLOW   seconds that every call takes
"""

import json
import os
import pathlib
import sys
import time
import zlib

EXAMPLES = 40
PYTHON = (sys.executable, __file__)
SHAPES = str(pathlib.Path(__file__).parents[1] / "configs" / "shapes.py")


def request(out, study="compare", variants=(), **fields):
    """A request for a study of configs/shapes.py with two seeds."""
    from etils import epath

    from tp_jax.studies.config_files import ConfigFile
    from tp_jax.studies.plan import Request

    fields = {"seeds": 2, "suites": ("shapes",)} | fields
    return Request(study=study, config=ConfigFile(SHAPES, variants), out=epath.Path(out), **fields)


def correct(variant, seed):
    """Which of the examples are right, by a fixed rule: a hash of variant, seed and example."""
    chance = {"base": 0.2, "lora": 0.5, "random": 0.5}.get(variant.partition("-")[0], 0.8)
    hashes = [zlib.crc32(f"{variant} {seed} {i}".encode()) / 2**32 for i in range(EXAMPLES)]
    return [value < chance for value in hashes]


def main():
    module, *arguments = sys.argv[1:]
    given = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    with open(os.environ["STAND_IN_CALLS"], "a") as calls:
        calls.write(json.dumps([module, *arguments]) + "\n")
    time.sleep(float(os.environ.get("STAND_IN_SLOW", 0)))
    path = pathlib.Path(given["workdir"])
    cell = "/".join(path.parts[-3:-1])
    if cell in os.environ.get("STAND_IN_FAILS", "").split():
        print("a line of the log")
        sys.exit(3)
    if module == "tp_jax.main":
        (path / "checkpoints" / str(10**9)).mkdir(parents=True)
        (path / "config.json").write_text("{}")
        return
    out = pathlib.Path(given["out"])
    out.mkdir(parents=True, exist_ok=True)
    verdicts = correct(*out.parts[-2:])
    lines = [{"filename": f"{i:05}", "correct": bool(v)} for i, v in enumerate(verdicts)]
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "scores.json").write_text(json.dumps({"overall": {"overall": sum(verdicts) / EXAMPLES}}))


if __name__ == "__main__":
    main()
