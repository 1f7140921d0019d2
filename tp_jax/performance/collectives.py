"""Communication of a compiled program, from its HLO text.

A collective inside a loop counts as often as the loop runs.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from tp_jax.performance.hlo import ITEMSIZES, computations_of, trip_count

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all",
)  # fmt: skip
# A collective between slices: the TPU compiler turns it into a host transfer by the runtime.
CROSS_SLICE = re.compile(r' recv\(.*"xla_megascale_runtime".*_xla_megascale_transfer_type="(\w+)"')
INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?\S+ = (.+?) (" + "|".join(KINDS) + r"|while|fusion|call|conditional|"
    r"async-start|custom-call)(-start)?\("
)
CALLED = re.compile(r"(?:calls|to_apply|branch_computations)=\{?%?([^\s,}]+(?:, %[^\s,}]+)*)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a program, on one device.

    Attributes:
      kind: one of `KINDS`.
      count: how often collectives of this kind run.
      received: bytes that a device receives from others, assuming ring algorithms.
      between_slices: the part of `received` from groups that span several slices.
    """

    kind: str
    count: int
    received: float
    between_slices: float


def read_collectives(text: str, devices: int, slices: int = 1) -> list[Collective]:
    """Sum up the collectives of a compiled program by kind.

    The body of a loop whose trip count depends on the data counts once.

    Args:
      text: `compiled.as_text()`, the program of one device after SPMD partitioning.
      devices: number of devices, numbered slice by slice.
      slices: number of slices.
    """
    computations, entry = computations_of(text)
    counts: collections.Counter[str] = collections.Counter()
    # Start from ints, so that a kind without traffic between slices has 0 instead of 0.0.
    received: dict[str, float] = collections.defaultdict(int)
    between: dict[str, float] = collections.defaultdict(int)
    for each, times in _instructions(computations, entry, 1, set()):
        if each.cross_slice:
            volume = times * _received_bytes(each.kind, each.sizes[:1], slices)
            between[each.kind] += volume
        else:
            groups = _groups(each.text, devices)
            volume = times * _received_bytes(each.kind, each.sizes, groups.shape[1])
            if (groups // (devices // slices) != groups[:, :1] // (devices // slices)).any():
                between[each.kind] += volume
        counts[each.kind] += times
        received[each.kind] += volume
    return [Collective(k, counts[k], received[k], between[k]) for k in KINDS if counts[k]]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      sizes: bytes of each result array on a device; of a reduce-scatter, of each operand.
      text: its line of HLO.
      cross_slice: whether the runtime transfers it between slices.
    """

    kind: str
    sizes: list[float]
    text: str
    cross_slice: bool = False


def _instructions(
    computations: dict[str, list[str]], name: str, times: int, fused: set[str]
) -> Iterator[tuple[_Instruction, int]]:
    """Yield the collectives of a computation and of those it calls, and how often each runs.

    Args:
      computations: the lines of each computation.
      name: the computation.
      times: how often it runs.
      fused: identities of the collectives already seen in fusions of the calling computation. A
        collective that overlaps with computation occurs in several fusions, under several names,
        but runs once.
    """
    seen_here: set[str] = set()
    for text in computations[name]:
        cross_slice = CROSS_SLICE.search(text)
        if cross_slice:
            kind = cross_slice[1].lower().replace("_", "-")
            sizes = _array_bytes(text.partition(" recv(")[0])
            yield _Instruction(kind, sizes, text, cross_slice=True), times
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
            # In a fusion of this name each device keeps only its part of the sum.
            scatters = name.startswith("all-reduce-scatter")
            sizes = _result_bytes(types) if match[3] else _array_bytes(types)
            if kind == "reduce-scatter":
                parts = _groups(text, 1).shape[1]
                sizes = [size * parts for size in sizes]
            yield _Instruction("reduce-scatter" if scatters else kind, sizes, text), times
        elif kind == "while":
            condition = re.findall(r"condition=%?([^\s,]+)", text)[0]
            body = re.findall(r"body=%?([^\s,]+)", text)[0]
            body_times = times * trip_count(computations[condition], text)
            yield from _instructions(computations, body, body_times, set())
        else:
            inner = seen_here if kind in ("fusion", "async-start") else set()
            for called in CALLED.findall(text):
                for each in called.replace("%", "").split(", "):
                    if each in computations:
                        yield from _instructions(computations, each, times, inner)


def _array_bytes(types: str) -> list[float]:
    """Return the bytes of each array in an HLO type, which may be a tuple."""
    sizes = []
    for dtype, shape in re.findall(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]", types):
        elements = np.prod([int(side) for side in shape.split(",") if side], initial=1.0)
        sizes.append(float(elements) * ITEMSIZES.get(dtype, 4))
    return sizes


def _result_bytes(types: str) -> list[float]:
    """Return the bytes of each result of an asynchronous start instruction.

    Its type is (operands, results, scalars for bookkeeping).
    """
    arrays = _array_bytes(types)
    arrays = [array for array in arrays if array > 4] or arrays
    return arrays[len(arrays) // 2 :]


def _attributes(text: str) -> str:
    """Return what distinguishes collectives of equal shape: channel, groups and source line."""
    return "".join(re.findall(r"channel_id=\d+|replica_groups=\S+|metadata=\{[^}]*\}", text))


def _received_bytes(kind: str, sizes: list[float], group_size: int) -> float:
    """Return the bytes that a device receives in a collective of `group_size` devices."""
    total, from_others = sum(sizes), (group_size - 1) / max(group_size, 1)
    if kind == "collective-permute":
        return total
    return (2 if kind == "all-reduce" else 1) * total * from_others


def _groups(text: str, devices: int) -> np.ndarray:
    """Return the device ids [groups, size] of the groups that communicate."""
    pairs = re.search(r"source_target_pairs=\{\{(.*?)\}\}", text)
    if pairs:
        return np.array([pair.split(",") for pair in pairs[1].split("},{")], int)
    listed = re.search(r"replica_groups=\{\{(.*?)\}\}", text)
    if listed:
        return np.array([group.split(",") for group in listed[1].split("},{")], int)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        return _iota_ids(iota[2], iota[3]).reshape([int(n) for n in iota[1].split(",")])
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r" \{([^}]*)\}",
        text,
    )
    if mesh:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        shape = [int(size) for size in axes.values()]
        ids = _iota_ids(mesh[2], mesh[3]) if mesh[2] else np.arange(np.prod(shape))
        within = [list(axes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        size = int(np.prod([shape[i] for i in within]))
        moved = np.moveaxis(ids.reshape(shape), within, range(-len(within), 0))
        return moved.reshape(-1, size)
    return np.arange(devices)[None]


def _iota_ids(shape: str, order: str | None) -> np.ndarray:
    """Return the device ids of HLO's iota notation `<=[shape]T(order)`."""
    sides = [int(side) for side in shape.split(",")]
    ids = np.arange(np.prod(sides)).reshape(sides)
    return (ids.transpose([int(axis) for axis in order.split(",")]) if order else ids).ravel()
