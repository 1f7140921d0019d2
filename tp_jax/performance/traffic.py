"""Memory traffic of a compiled program, from its HLO text.

Every instruction reads its operands from memory and writes its results to it once. What the
compiler keeps in on-chip memory doesn't count, nor what happens inside a fusion or a kernel.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from tp_jax.performance.hlo import ITEMSIZES, computations_of, trip_count

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.+?) ([a-z][\w-]*)\(([^)]*)\)")
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
# Instructions that move no data.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One instruction: its name, type, operation, operands and its line of HLO."""

    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    text: str


def read_traffic(text: str) -> float:
    """Return the bytes that one device reads from and writes to its memory.

    The body of a loop whose trip count depends on the data counts once; of a conditional, the
    branch with the most traffic counts.

    Args:
      text: `compiled.as_text()`, the program of one device after SPMD partitioning.
    """
    lines, entry = computations_of(text)
    program = _Program({name: tuple(_parse(body)) for name, body in lines.items()}, lines)
    return program.traffic(entry)


def _parse(lines: list[str]) -> Iterator[_Instruction]:
    for line in lines:
        match = INSTRUCTION.match(line)
        if match:
            operands = tuple(re.findall(r"%([^\s,]+)", match[4]))
            yield _Instruction(match[1], match[2], match[3], operands, line)


class _Program:
    """The computations of a program, by name: parsed, and as lines of text."""

    def __init__(
        self, computations: dict[str, tuple[_Instruction, ...]], lines: dict[str, list[str]]
    ):
        self.computations, self.lines = computations, lines

    def traffic(self, name: str) -> float:
        """Return the bytes that one execution of a computation moves."""
        types = {each.name: each.type for each in self.computations[name]}
        total = 0.0
        for each in self.computations[name]:
            if each.kind == "while":
                condition, body = (
                    re.findall(rf"{key}=%?([^\s,]+)", each.text)[0] for key in ("condition", "body")
                )
                total += trip_count(self.lines[condition], each.text) * self.traffic(body)
            elif each.kind == "call":
                total += self.traffic(re.findall(r"to_apply=%?([^\s,]+)", each.text)[0])
            elif each.kind == "conditional":
                branches = re.findall(r"_computations?=\{?(%[^}=]+?)(?:\}|, \w+=|$)", each.text)
                names = re.findall(r"%([^\s,]+)", " ".join(branches))
                total += max((self.traffic(name) for name in names), default=0.0)
            elif each.kind in FREE or each.kind.endswith("-done"):
                continue
            elif each.kind.endswith("-start"):
                # The type is (operands, results, …) or, of a copy, (result, operand, …).
                total += stored_bytes(each.type)
            elif each.kind == "fusion":
                total += self._fusion(each, types)
            elif each.kind in SLICES:
                total += 2 * stored_bytes(each.type)
            elif each.kind == "dynamic-update-slice":
                total += 2 * stored_bytes(types.get(each.operands[1], ""))
            else:
                total += stored_bytes(each.type)
                total += sum(stored_bytes(types.get(name, "")) for name in each.operands)
        return total

    def _fusion(self, fusion: _Instruction, types: dict[str, str]) -> float:
        """Return the bytes of a fusion.

        Of an operand that is only sliced, the slices count; of a result that updates an operand in
        place, the update.
        """
        called = re.findall(r"calls=%?([^\s,]+)", fusion.text)[0]
        inside = self.computations[called]
        by_name = {each.name: each for each in inside}
        users: dict[str, list[_Instruction]] = {}
        for each in inside:
            for name in each.operands:
                users.setdefault(name, []).append(each)

        def final_users(name: str) -> Iterator[_Instruction]:
            for user in users.get(name, []):
                if user.kind == "bitcast" and user is not inside[-1]:
                    yield from final_users(user.name)
                else:
                    yield user

        def source(name: str) -> _Instruction:
            each = by_name[name]
            return source(each.operands[0]) if each.kind == "bitcast" else each

        root = source(inside[-1].name)
        roots = [source(name) for name in root.operands] if root.kind == "tuple" else [root]
        updates = [each for each in roots if each.kind == "dynamic-update-slice"]
        replaced = {source(each.operands[0]).name for each in updates}
        results = [stored_bytes(part) for part in _parts(fusion.type)]
        total = 0.0
        for each, size in zip(roots, results, strict=False):
            total += stored_bytes(by_name[each.operands[1]].type) if each in updates else size
        parameters = {
            int(re.findall(r"parameter\((\d+)\)", each.text)[0]): each
            for each in inside
            if each.kind == "parameter"
        }
        for index, operand in enumerate(fusion.operands):
            inner, size = parameters.get(index), stored_bytes(types.get(operand, ""))
            if not inner or not size or inner.name in replaced:
                total += 0.0 if inner and inner.name in replaced else size
                continue
            reads = list(final_users(inner.name))
            sliced = sum(stored_bytes(each.type) for each in reads)
            only_slices = all(each.kind in SLICES for each in reads)
            total += min(size, sliced) if only_slices else size
        return total


def _parts(types: str) -> list[str]:
    """Return the arrays of an HLO type, which may be a tuple."""
    return [match[0] for match in ARRAY.finditer(types)]


@functools.cache
def stored_bytes(types: str) -> float:
    """Return the bytes of the arrays of an HLO type in memory, with the padding of their tiles.

    Arrays in another memory space than the main memory, as `S(1)`, count as 0.

    Example:
      >>> stored_bytes("bf16[24,4250,64]{2,1,0:T(8,128)(2,1)}") == 24 * 4256 * 128 * 2
      True
      >>> stored_bytes("(f32[8]{0:S(1)}, f32[8]{0})")
      32.0
    """
    total = 0.0
    for dtype, shape, layout in ARRAY.findall(types):
        if re.search(r"S\([1-9]", layout):
            continue
        sides = [int(side) for side in shape.split(",") if side]
        order = [
            int(axis) for axis in re.findall(r"^[\d,]+", layout)[:1] for axis in axis.split(",")
        ]
        tile = re.search(r"T\(([\d,]+)\)", layout)
        if tile and order:
            tiled = [int(side) for side in tile[1].split(",")]
            for axis, side in zip(order, reversed(tiled), strict=False):
                sides[axis] = -(-sides[axis] // side) * side
        total += math.prod(sides) * ITEMSIZES.get(dtype, 4)
    return total
