"""What a compiled program sends between devices: collectives in its text, by axis of the mesh, loops multiplied."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

_BYTES: dict[str, float] = {"s4": 0.5, "u4": 0.5, "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_INSTRUCTION = re.compile(r"= (?P<shape>.*?) (?P<kind>" + "|".join(_KINDS) + r")(?P<start>-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}")
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device receives in one run of a program: bytes by (axes of the mesh, kind), and how many collectives."""

    bytes: dict[tuple[str, str], float]
    count: dict[tuple[str, str], int]

    def along(self, axes: str) -> float:
        """Bytes along these axes, joined by "+"."""
        return sum(size for (name, _), size in self.bytes.items() if name == axes)


def traffic(text: str, mesh: Mesh) -> Traffic:
    """The collectives of a compiled program (`compiled.as_text()`) for a mesh. Of a conditional all branches count."""
    bodies, entry = _computations(text)
    rounds = _times(bodies, entry)
    sizes: dict[tuple[str, str], float] = collections.defaultdict(float)
    counts: dict[tuple[str, str], int] = collections.defaultdict(int)
    for name, lines in bodies.items():
        for line in lines if rounds[name] else ():
            found = _INSTRUCTION.search(line)
            if found is None:
                continue
            groups = list(_groups(line, mesh.devices.size))
            members = max(map(len, groups), default=1)
            if members < 2 and found["kind"] != "collective-permute":
                continue
            key = "+".join(_axes(groups, mesh)), found["kind"]
            sizes[key] += rounds[name] * _received(found, members)
            counts[key] += rounds[name]
    return Traffic(dict(sizes), dict(counts))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of every computation, and the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs."""
    times: dict[str, int] = collections.defaultdict(int)

    def visit(name: str, rounds: int) -> None:
        times[name] += rounds
        for line in bodies.get(name, ()):
            called = _CALLED.findall(line)
            for names in _BRANCHES.findall(line):
                called += [part.strip().lstrip("%") for part in names.split(",")]
            repeated = _loop(line, bodies) if called else 1
            for inner in called:
                visit(inner, rounds * repeated)

    visit(entry, 1)
    return times


def _loop(line: str, bodies: dict[str, list[str]]) -> int:
    """How often a loop runs, 1 for what is none: known to the compiler, or the limit that its counter is compared with.

    Raises ValueError if neither is in the text.
    """
    known, condition = _ROUNDS.search(line), _CONDITION.search(line)
    if known or condition is None:
        return int(known[1]) if known else 1
    limits = [int(found[1]) for text in bodies.get(condition[1], ()) if (found := _LIMIT.search(text))]
    if len(limits) != 1:
        raise ValueError(f"the loop with the condition {condition[1]} has no known number of rounds")
    return limits[0]


def _received(found: re.Match, members: int) -> float:
    """Bytes that come into one device, by the usual ring algorithms."""
    shapes = [_size(*shape) for shape in _SHAPE.findall(found["shape"])]
    kind = found["kind"]
    if found["start"]:  # (operands, results, context)
        shapes = [max(shapes)] if kind != "reduce-scatter" else [min(s for s in shapes if s > 4)]
    total, share = sum(shapes), (members - 1) / members
    if kind == "all-reduce":
        return 2 * share * total
    if kind == "reduce-scatter":
        return (members - 1) * total
    return total if kind == "collective-permute" else share * total


def _size(kind: str, dimensions: str) -> float:
    return float(_BYTES.get(kind, 0)) * math.prod(int(size) for size in dimensions.split(",") if size)


def _groups(line: str, devices: int) -> Iterator[Sequence[int]]:
    """The devices that take part in a collective together, or pairs of sender and receiver."""
    named = _MESH.search(line)
    if named:
        yield from _named_groups(*named.groups())
        return
    iota = _IOTA.search(line)
    if iota:
        numbers = [[int(x) for x in part.split(",")] for part in iota.groups() if part]
        numbers += [list(range(len(numbers[1])))] * (len(numbers) == 2)
        ids = np.arange(math.prod(numbers[1])).reshape(numbers[1])
        yield from ids.transpose(*numbers[2:]).reshape(numbers[0]).tolist()
        return
    lists = _LISTS.search(line)
    if lists is None:
        yield range(devices)
        return
    for group in re.findall(r"\{([\d, ]+)\}", lists[1]):
        yield [int(x) for x in group.split(",")]


def _named_groups(axes: str, dimensions: str | None, order: str | None, along: str) -> Iterator[Sequence[int]]:
    """Groups written as axes of a mesh of the compiler's own: 'a'=2,'b'=4, ids as an iota, and the axes in use.

    A part of an axis is written 'b':(2)2, the two in the middle of what is left of two.
    """
    names, sizes = zip(*((name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)))
    numbers = lambda text: [int(x) for x in text.split(",")]
    ids = np.arange(math.prod(sizes))
    if dimensions:
        ids = ids.reshape(numbers(dimensions)).transpose(numbers(order) if order else None)
    shape, used = [], []
    for name, size in zip(names, sizes):
        parts = [(int(before), int(part)) for before, part in re.findall(rf"'{name}':\((\d+)\)(\d+)", along)]
        if not parts:
            used += [len(shape)] * (f"'{name}'" in along)
            shape.append(size)
            continue
        done = 1
        for before, part in parts:
            used.append(len(shape) + 1)
            shape += [before // done, part]
            done = before * part
        shape.append(size // done)
    kept = [axis for axis in range(len(shape)) if axis not in used]
    together = math.prod(shape[axis] for axis in used)
    yield from ids.reshape(shape).transpose(*kept, *used).reshape(-1, together).tolist()


def _axes(groups: Sequence[Sequence[int]], mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which the members of a group differ."""
    differ = set()
    for group in groups:
        places = np.array(np.unravel_index(np.asarray(group), mesh.devices.shape))
        differ |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)).tolist())
    return tuple(name for axis, name in enumerate(mesh.axis_names) if axis in differ)
