"""The structure of a compiled program, from its HLO text."""

import re

ITEMSIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8,
             "s64": 8, "u64": 8}  # fmt: skip
COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")


def computations_of(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation by its name, and the name of the entry computation."""
    found, current, entry = {}, None, ""
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        if head:
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # a kernel's metadata may have lines that only begin so
            current = None
        elif current is not None:
            current.append(line)
    return found, entry


def trip_count(condition: list[str], text: str) -> int:
    """Return the trip count of a while loop, from its line or its condition; 1 if unknown."""
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
