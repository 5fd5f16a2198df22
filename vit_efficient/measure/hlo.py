"""What a TPU program costs, read from the text that its compiler prints (`compiled.as_text()`).

The compiler leaves its own cycle estimate on every fused operation; every type in the text has its
layout, and with it its size in memory. Loops count as often as they run, the branches of a
conditional in equal parts.
"""
from collections import Counter
from collections.abc import Iterator
import math
import re
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
               "ragged-all-to-all", "collective-broadcast")

_ITEM_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "s2": 2, "u2": 2}
_TYPE = re.compile(r"\b(pred|bf16|[sufc]\d+(?:e\d\w*)?)\[([\d,]*)\](?:\{([^{}]*)\})?")
_TILES = re.compile(r"([\d,]*):T\((\d+)(?:,(\d+))?\)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# Operations that name or regroup arrays and move nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
         "partition-id", "replica-id"}


class Cost(NamedTuple):
    """Of one run of a program on one device.

    `cycles`: the compiler's estimates, summed: neither waiting for memory nor for the network is in
    them. `bytes_moved`: operands and results in the device's large memory, as they are laid out
    there (tiles are padded). `bytes_sent`: what collectives must send over the links at the least.
    `collectives`: `{kind: (how many, bytes of their results)}`.
    """
    cycles: float
    bytes_moved: float
    bytes_sent: float
    collectives: dict[str, tuple[float, float]]


class Array(NamedTuple):
    """An array type: its bytes with the padding of its tiles, and whether it lies on the chip."""
    bytes: float
    on_chip: bool


def cost(text: str) -> Cost:
    """The cost of a compiled module from its text; ValueError where there is no entry in it."""
    computations = _computations(text)
    if "ENTRY" not in computations:
        raise ValueError("no compiled module: the text has no ENTRY computation")
    found = re.search(r"num_partitions=(\d+)", text)
    devices = int(found[1]) if found else 1
    cycles, moved, sent, counts, sizes = 0.0, 0.0, 0.0, Counter(), Counter()
    for operation, times in _run(computations, "ENTRY", 1.0):
        cycles += times * operation.cycles
        moved += times * operation.bytes_moved
        for kind, size, group in operation.collectives:
            counts[kind] += times
            sizes[kind] += times * size
            sent += times * _least_sent(kind, size, group or devices)
    return Cost(cycles, moved, sent, {kind: (counts[kind], sizes[kind]) for kind in counts})


def arrays(text: str) -> list[Array]:
    """The arrays of a type: `(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, u32[])` has two."""
    return [Array(_padded(dims, layout) * _bits(item) / 8, "S(1)" in layout)
            for item, dims, layout in _TYPE.findall(text)]


class _Operation(NamedTuple):
    """`collectives`: (kind, bytes of the result, devices in a group; None is all of them)."""
    cycles: int
    bytes_moved: float
    collectives: list[tuple[str, float, int | None]]


def _computations(text: str) -> dict[str, list[tuple[str, str, str]]]:
    """{computation: [(name, type, rest of the line)]}, the entry's under "ENTRY"."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    current: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif instruction := _INSTRUCTION.match(line):
            kind, rest = _until(instruction[2], " ")
            current.append((instruction[1], kind, rest))
    return found


def _run(computations: dict, name: str, times: float) -> Iterator[tuple[_Operation, float]]:
    """Every operation that `name` runs, and how often; what a fusion holds is one operation."""
    types = {}
    for own, kind, rest in computations[name]:
        types[own] = kind
        operation = rest.partition("(")[0]
        if operation == "while":
            loop = times * _trips(computations, rest)
            yield from _run(computations, _called(rest, "body")[0], loop)
        elif operation == "conditional":
            branches = (_called(rest, "branch_computations")
                        or _called(rest, "true_computation") + _called(rest, "false_computation"))
            for branch in branches:
                yield from _run(computations, branch, times / len(branches))
        elif operation == "call":
            yield from _run(computations, _called(rest, "to_apply")[0], times)
        elif operation not in _FREE and not operation.endswith("-done"):
            yield _operation(computations, operation, kind, rest, types), times


def _operation(computations: dict, name: str, kind: str, rest: str,
               types: dict[str, str]) -> _Operation:
    operands = _until(rest[len(name) + 1:], ")")[0]
    results = arrays(kind)
    if name in ("copy-start", "slice-start", "dynamic-slice-start"):
        moved = min((array.bytes for array in results[:2]), default=0)    # one side is on the chip
    else:
        given = [array for operand in re.findall(r"%([\w.\-]+)", operands)
                 for array in arrays(types.get(operand, ""))]
        moved = sum(array.bytes for array in results + given if not array.on_chip)
    estimate = re.search(r'"estimated_cycles":"(\d+)"', rest)
    return _Operation(int(estimate[1]) if estimate else 0, moved,
                      _collectives(computations, name, kind, rest))


def _collectives(computations: dict, name: str, kind: str,
                 rest: str) -> list[tuple[str, float, int | None]]:
    """An operation's collectives: itself, or those inside of a fusion or an asynchronous call."""
    plain = name.removesuffix("-start")
    if plain in COLLECTIVES:
        results = arrays(kind)
        if name != plain and plain != "all-reduce":      # (operands, results, ...) once started
            results = results[len(results) // 2:]
        return [(plain, sum(array.bytes for array in results), _group(rest))]
    inner = _called(rest, "calls") if name in ("fusion", "async-start") else []
    return [found for called in inner for _, kind, rest in computations.get(called, ())
            for found in _collectives(computations, rest.partition("(")[0], kind, rest)]


def _group(rest: str) -> int | None:
    """The devices of one group of a collective, None where it does not list them:
    `replica_groups=[2,8]<=[16]` and `replica_groups={{0,1},{2,3}}`."""
    found = re.search(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})", rest)
    return (int(found[1]) if found[1] else found[2].count(",") + 1) if found else None


def _least_sent(kind: str, size: float, group: int) -> float:
    """Bytes that each device of a `group` sends at the least, for a result of `size` bytes."""
    shares = {"all-reduce": 2 * (group - 1) / group, "all-gather": (group - 1) / group,
              "all-to-all": (group - 1) / group, "reduce-scatter": group - 1}
    return size * shares.get(kind, 1)


def _called(rest: str, key: str) -> list[str]:
    """The computations that an instruction names under `key`: `body=%a`, `branches={%a, %b}`."""
    found = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))", rest)
    return re.findall(r"[\w.\-]+", found[1] or found[2]) if found else []


def _trips(computations: dict, rest: str) -> int:
    """How often a loop runs: as the compiler says, else the constant that its condition tests."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
        return int(known[1])
    condition = computations.get((_called(rest, "condition") or [""])[0], ())
    return max((int(found[1]) for _, kind, text in condition if kind.startswith("s32[]")
                and (found := re.match(r"constant\((\d+)\)", text))), default=1)


def _until(text: str, stop: str) -> tuple[str, str]:
    """`text` before the first `stop` outside of brackets, and after it."""
    depth = 0
    for i, char in enumerate(text):
        if char == stop and depth == 0:
            return text[:i], text[i + 1:]
        depth += (char in "({[") - (char in ")}]")
    return text, ""


def _bits(item: str) -> int:
    return _ITEM_BITS.get(item) or int(re.match(r"[sufc](\d+)", item)[1])


def _padded(dims: str, layout: str) -> int:
    """Elements of an array of `dims` with the padding of its tiles: the layout lists the axes from
    the fastest on, a tile's last side belongs to the fastest."""
    sides = [int(n) for n in dims.split(",") if n]
    tiles = _TILES.match(layout)
    if not tiles or not sides:
        return math.prod(sides)
    order = [int(axis) for axis in tiles[1].split(",") if axis]
    if tiles[3] is None:
        tile = int(tiles[2])
        return -(-math.prod(sides) // tile) * tile
    for axis, tile in zip(order, (int(tiles[3]), int(tiles[2]))):
        sides[axis] = -(-sides[axis] // tile) * tile
    return math.prod(sides)
