"""What a compiled program exchanges: read off its text, loops counted as often as they run."""

import collections
import dataclasses
import re
from collections.abc import Iterator

import numpy as np

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all",
)  # fmt: skip
ITEMSIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8,
             "s64": 8, "u64": 8}  # fmt: skip
COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
# What the compiler makes of an exchange between slices; the runtime carries it out.
FAR = re.compile(r' recv\(.*"xla_megascale_runtime".*_xla_megascale_transfer_type="(\w+)"')
INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?\S+ = (.+?) (" + "|".join(KINDS) + r"|while|fusion|call|conditional|"
    r"async-start|custom-call)(-start)?\("
)
CALLED = re.compile(r"(?:calls|to_apply|branch_computations)=\{?%?([^\s,}]+(?:, %[^\s,}]+)*)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange of a program, on one device.

    Attributes:
      kind: one of `KINDS`.
      count: how often it runs.
      received: bytes that a device gets from others, by a ring where there is a choice.
      between_slices: of those, bytes of groups that span slices.
    """

    kind: str
    count: int
    received: float
    between_slices: float


def read_collectives(text: str, devices: int, slices: int = 1) -> list[Collective]:
    """Adds up the exchanges of a compiled program.

    Args:
      text: `compiled.as_text()`: of one device, after partitioning.
      devices: how many there are, numbered slice by slice.

    A loop whose length the data decides counts as one turn.
    """
    computations, entry = _computations(text)
    counts: collections.Counter[str] = collections.Counter()
    # Of whole numbers, where nothing is exchanged.
    received: dict[str, float] = collections.defaultdict(int)
    between: dict[str, float] = collections.defaultdict(int)
    for line, times in _lines(computations, entry, 1, set()):
        if line.far:
            volume = times * _volume(line.kind, line.types[:1], slices)
            between[line.kind] += volume
        else:
            groups = _groups(line.text, devices)
            volume = times * _volume(line.kind, line.types, groups.shape[1])
            if (groups // (devices // slices) != groups[:, :1] // (devices // slices)).any():
                between[line.kind] += volume
        counts[line.kind] += times
        received[line.kind] += volume
    return [Collective(k, counts[k], received[k], between[k]) for k in KINDS if counts[k]]


@dataclasses.dataclass(frozen=True)
class _Line:
    """One exchange.

    Attributes:
      types: bytes of each array that a device has after it, or, of what is scattered, before.
      far: between slices, through the runtime.
    """

    kind: str
    types: list[float]
    text: str
    far: bool = False


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found, current, entry = {}, None, ""
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        if head:
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found, entry


def _lines(
    computations: dict[str, list[str]], name: str, times: int, fused: set[str]
) -> Iterator[tuple[_Line, int]]:
    """The collectives of a computation and of what it calls, and how often each runs.

    Args:
      fused: exchanges seen in fusions of the calling computation: one that overlaps with
        computation is in several of them, the same but for its name.
    """
    seen_here: set[str] = set()
    for text in computations[name]:
        far = FAR.search(text)
        if far:
            kind = far[1].lower().replace("_", "-")
            yield _Line(kind, _bytes(text.partition(" recv(")[0]), text, far=True), times
            continue
        match = INSTRUCTION.match(text)
        if not match:
            continue
        types, kind = match[1], match[2]
        if kind in KINDS:
            if name.startswith("fused") or "async_collective" in name:
                identity = text.partition(" = ")[2].partition("(%")[0] + _attributes(text)
                if identity in fused:
                    continue
                fused.add(identity)
            # A fusion of that name keeps a device's part of the sum alone.
            scatters = name.startswith("all-reduce-scatter")
            sizes = _after(types) if match[3] else _bytes(types)
            if kind == "reduce-scatter":
                parts = _groups(text, 1).shape[1]
                sizes = [size * parts for size in sizes]
            yield _Line("reduce-scatter" if scatters else kind, sizes, text), times
        elif kind == "while":
            condition = re.findall(r"condition=%?([^\s,]+)", text)[0]
            body = re.findall(r"body=%?([^\s,]+)", text)[0]
            turns = times * _trip_count(computations[condition], text)
            yield from _lines(computations, body, turns, set())
        else:
            inner = seen_here if kind in ("fusion", "async-start") else set()
            for called in CALLED.findall(text):
                for each in called.replace("%", "").split(", "):
                    if each in computations:
                        yield from _lines(computations, each, times, inner)


def _trip_count(condition: list[str], text: str) -> int:
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', text)
    if known:
        return int(known[1])
    constants = {
        m[1]: int(m[2])
        for line in condition
        if (m := re.match(r"\s+(?:ROOT )?(%?\S+) = s32\[\]\S* constant\((\d+)\)", line))
    }
    root = next(line for line in condition if line.lstrip().startswith("ROOT"))
    operands = re.search(r"compare\(([^)]*)\)", root)
    named = [n.split()[-1] for n in operands[1].split(", ")] if operands else []
    return next((constants[name] for name in named if name in constants), 1)


def _bytes(types: str) -> list[float]:
    """Bytes of each array in a type, which may be a tuple."""
    sizes = []
    for dtype, shape in re.findall(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]", types):
        elements = np.prod([int(side) for side in shape.split(",") if side], initial=1.0)
        sizes.append(float(elements) * ITEMSIZES.get(dtype, 4))
    return sizes


def _after(types: str) -> list[float]:
    """Of the type of a start, which is (operands, results, bookkeeping), the results."""
    arrays = _bytes(types)
    arrays = [array for array in arrays if array > 4] or arrays
    return arrays[len(arrays) // 2 :]


def _attributes(text: str) -> str:
    """What tells exchanges of one shape apart: channel, groups and where they were written."""
    return "".join(re.findall(r"channel_id=\d+|replica_groups=\S+|metadata=\{[^}]*\}", text))


def _volume(kind: str, arrays: list[float], size: int) -> float:
    """Bytes received by a device of a group of `size`."""
    total, away = sum(arrays), (size - 1) / max(size, 1)
    if kind == "collective-permute":
        return total
    return (2 if kind == "all-reduce" else 1) * total * away


def _groups(text: str, devices: int) -> np.ndarray:
    """Devices [groups, size] that exchange with each other."""
    pairs = re.search(r"source_target_pairs=\{\{(.*?)\}\}", text)
    if pairs:
        return np.array([pair.split(",") for pair in pairs[1].split("},{")], int)
    listed = re.search(r"replica_groups=\{\{(.*?)\}\}", text)
    if listed:
        return np.array([group.split(",") for group in listed[1].split("},{")], int)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        return _iota(iota[2], iota[3]).reshape([int(n) for n in iota[1].split(",")])
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r" \{([^}]*)\}",
        text,
    )
    if mesh:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        shape = [int(size) for size in axes.values()]
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(np.prod(shape))
        within = [list(axes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        size = int(np.prod([shape[i] for i in within]))
        moved = np.moveaxis(ids.reshape(shape), within, range(-len(within), 0))
        return moved.reshape(-1, size)
    return np.arange(devices)[None]


def _iota(shape: str, order: str | None) -> np.ndarray:
    sides = [int(side) for side in shape.split(",")]
    ids = np.arange(np.prod(sides)).reshape(sides)
    return (ids.transpose([int(axis) for axis in order.split(",")]) if order else ids).ravel()
