"""Run benchmarks, print their rows, and keep them as JSON and as Markdown."""

import json
import os
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.config import default, flat
from tp_jax.files.atomic import write_json, write_text
from tp_jax.files.outputs import check_writable
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.performance.benchmarks import find_groups
from tp_jax.performance.contenders import describe_model
from tp_jax.performance.machine import describe_machine, today
from tp_jax.performance.measure import measure_group
from tp_jax.performance.memory import peak_host_bytes
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import check_peers
from tp_jax.performance.report import as_lines, render
from tp_jax.performance.standard import standard_config

Row = dict[str, Any]


def standard_for_device() -> ConfigDict:
    """Return the config that is measured if none is given: it fits the device."""
    return standard_config("DiT-S/2" if jax.default_backend() == "cpu" else "DiT-XL/2")


def prepare_process() -> None:
    """Leave memory of a GPU to peers, and compile anew. Call it before devices are first used.

    Seconds of compiling are measured, so a cache is used only if the user names it.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_enable_compilation_cache", False)


def run_bench(options: BenchOptions) -> list[Row]:
    """Measure, print the rows, and write them to `options.json` and `options.report`.

    A benchmark whose rows are in `options.json` already, from this machine, this commit and these
    options, isn't measured again, so that a run which was killed goes on.

    Returns:
      The rows of this call and of `options.json`.

    Raises:
      UserError: the config is wrong, a peer can't be measured, or a file can't be read or written.
    """
    config_lib.build(options.config)
    check_peers(options.config, options.peer_dit)
    for name in ("json", "report"):
        path = getattr(options, name)
        if path is not None:
            check_writable(f"--{name}", path)
    rows, machine = read_rows(options.json), describe_machine()
    for what in options.what:
        settings = describe_settings(what, options) | {"machine": machine}
        if any(settings == {name: row.get(name) for name in settings} for row in rows):
            say(f"{what}: {options.json} has it already, from this commit")
            continue
        found = []
        for group in find_groups(what)(options):
            found += measure_group(group, options.repetitions, options.seconds)
        found = [settings | {"date": today()} | row | _peaks(row) for row in found]
        print("\n".join(as_lines(found)), flush=True)
        replaced = {_place(row) for row in found}
        rows = [row for row in rows if _place(row) not in replaced] + found
        if options.json:
            write_json(options.json, {"rows": rows})
    if options.report:
        write_text(options.report, render(rows))
    return rows


def describe_settings(what: str, options: BenchOptions) -> Row:
    """Return what a benchmark is asked to measure, as JSON."""
    config = options.config
    standard = flat(default(config.model.kind, config.diffusion.kind))
    changes = {k: v for k, v in flat(config).items() if standard.get(k) != v}
    swept = {"experts": list(options.experts), "latent_steps": list(options.latent_steps)}
    return (swept if what == "dispatch" else {}) | {
        "what": what,
        "model": describe_model(config),
        # As JSON: tuples become lists.
        "config": json.loads(json.dumps(changes)),
        "repetitions": options.repetitions,
        "peers": list(options.peers) if options.peer_dit or config.model.kind != "dit" else [],
    }


def _place(row: Row) -> tuple[Any, ...]:
    """Return what a later measurement of the same has in common with a row."""
    machine = row["machine"]
    return row["what"], json.dumps(row["config"]), machine["device"], machine["devices"]


def _peaks(row: Row) -> Row:
    """Return the peaks of this process's memory until now, for a row of a contender in it."""
    if row["by"] != "tp_jax" or "failed" in row:
        return {}
    stats = jax.devices()[0].memory_stats() or {}
    found = {"peak_host_bytes": peak_host_bytes()}
    peak = stats.get("peak_bytes_in_use")
    return found if peak is None else found | {"peak_device_bytes": peak}


def read_rows(path: epath.Path | None) -> list[Row]:
    """Return the rows of a file that `run_bench` wrote; none if it doesn't exist.

    Raises:
      UserError: the file has other contents.
    """
    if path is None or not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())["rows"]
        names = ("what", "config", "machine", "by", "case")
        if all(name in row for row in rows for name in names):
            return rows
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"--json={path} wasn't written by tp_jax.bench: name another file")
