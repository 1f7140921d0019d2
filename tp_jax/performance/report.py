"""Rows of benchmarks as text: lines for the terminal, and a page in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from tp_jax.parallel.chips import find_chip

Row = dict[str, Any]
HEADING = """# Measured speed

Written by `python -m tp_jax.bench`; `tp_jax/performance/README.md` says what is measured and how to
repeat it. Times are medians (quartiles); ratios are those of medians (quartiles of the ratios of
each repetition).
"""
HEAD = ("case", "by", "time", "images/s", "FLOP/s", "memory", "compared")


def as_lines(rows: Sequence[Row]) -> list[str]:
    """Return rows as lines with aligned columns, under the name of their benchmark and model."""
    if not rows:
        return []
    cells = [HEAD, *map(_cells, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return [f"{rows[0]['what']}: {rows[0]['model']}", *(line.rstrip() for line in lines)]


def render(rows: Sequence[Row]) -> str:
    """Return rows as a page in Markdown, by machine and commit, then by benchmark and model."""
    parts = [HEADING]
    for machine, found in _grouped(rows, lambda row: _machine(row)):
        parts += [f"## {machine}", ""]
        for title, part in _grouped(found, lambda row: f"{row['what']}: {row['model']}"):
            parts += [f"### {title}", "", _table(part), ""]
    return "\n".join(parts)


def _grouped(rows: Iterable[Row], key: Any) -> list[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())


def _machine(row: Row) -> str:
    machine = row["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    commit = machine.get("commit", "unknown") + (" with changes" if machine.get("changed") else "")
    devices = f"{machine['devices']} × " if machine["devices"] > 1 else ""
    return (
        f"{devices}{machine['device']}, {machine['cores']} cores; {row['date']}; commit {commit}; "
        f"{versions}"
    )


def _table(rows: Sequence[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row) -> tuple[str, ...]:
    by = row["by"]
    case = "" if row["case"] == by else row["case"]
    if "failed" in row:
        return case, by, f"fails: {row['failed']}", "", "", "", ""
    seconds, unit = row["seconds"], ""
    scale, unit = (1, "s") if seconds["median"] >= 1 else (1e3, "ms")
    low, middle, high = (f"{scale * seconds[name]:.3g}" for name in ("low", "median", "high"))
    compared = [_ratio(found, name) for name, found in row["ratios"].items()]
    if "waiting_share" in row:
        compared.append(f"training waits {row['waiting_share']:.1%} of its time")
    rate = f"{row['images_per_second']:.3g}" if "images_per_second" in row else ""
    return (
        case, by, f"{middle} ({low}–{high}) {unit}", rate, _flops(row), _memory(row),
        "; ".join(compared),
    )  # fmt: skip


def _ratio(found: dict[str, float], name: str) -> str:
    text = f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f}) × {name}"
    return text + (f", FLOPs {found['flops']:.2f} ×" if "flops" in found else "")


def _flops(row: Row) -> str:
    rate = row.get("flops_per_second")
    if rate is None:
        return ""
    text = f"{rate / 1e12:.3g} T" if rate >= 1e12 else f"{rate / 1e9:.3g} G"
    chip = find_chip(row["machine"]["device"])
    if chip:
        text += f" ({rate / (chip.peak_flops * row['machine']['devices']):.0%} of peak)"
    return text


def _memory(row: Row) -> str:
    for name in ("program_bytes", "peak_device_bytes", "peak_host_bytes"):
        if name in row:
            return f"{row[name] / 2**30:.2f} GiB"
    return ""
