"""From FLOPs and bytes to the least time that a step can take (Williams et al. 2009, Roofline)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddm_jax.costs.chips import Chip
from ddm_jax.costs.collectives import Collective
from ddm_jax.costs.hlo import Array, Computation, Instruction, Program

# read and write nothing by themselves
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "async-start", "async-update",
    "async-done", "opt-barrier",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_RENAMES = ("bitcast", "reshape")


@dataclass(frozen=True)
class Place:
    """Where a device is: its slice, and the coordinates of its chip in the torus."""

    slice: int
    coords: tuple[int, ...]


@dataclass(frozen=True)
class Roofline:
    """Seconds that a step of a device spends at the least on each of three, one after another.

    They are added where the compiler lets them wait for each other, and only the longest counts
    where they overlap in full: a real step is between `overlapped` and `serial`, if all runs at
    peak, which it does not.
    """

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """Network and memory are hidden behind compute, or the other way round."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """The network waits for the chip and the chip for the network."""
        return max(self.compute, self.memory) + self.network

    @property
    def bound(self) -> str:
        """What takes longest."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=times.get)


def roofline(
    flops: float, traffic: float, found: Sequence[Collective], places: Sequence[Place], chip: Chip
) -> Roofline:
    """flops, traffic (bytes of HBM): of a device in a step; places: of the program's partitions."""
    return Roofline(
        compute=flops * chip.devices / chip.flops,
        memory=traffic * chip.devices / chip.hbm_bandwidth,
        network=network_seconds(found, places, chip),
    )


def network_seconds(found: Sequence[Collective], places: Sequence[Place], chip: Chip) -> float:
    """Seconds that the collectives of a step take, at the full speed of the links.

    A group that spans dimensions of the torus has a ring in each, and divides its bytes among
    them (as XLA does); a ring moves bytes both ways, a dimension that is not closed only one way
    at a time. Latency is left out. Permutations that go opposite ways overlap. A group of several
    slices first reduces (or at last gathers) within its slice: the data-centre network carries
    what is left, from every chip at once.
    """
    extent = _extent(places)
    seconds = 0.0
    permutes: Counter[Any] = Counter()
    for one in found:
        if one.kind == "collective-permute":
            far = any(places[a].slice != places[b].slice for a, b in one.groups)
            permutes[one.groups] += one.moved * one.runs / (chip.dcn if far else chip.link)
            continue
        members = [places[i] for i in max(one.groups, key=len)]
        slices = len({p.slice for p in members})
        within = len(members) // slices
        # of the ring's share (g - 1) / g of all bytes, what stays within a slice
        near = (within - 1) / within * len(members) / (len(members) - 1)
        if within > 1:
            seconds += one.runs * one.moved * near / _bandwidth(members, extent, chip)
        if slices > 1:
            far_share = (slices - 1) / slices * len(members) / (len(members) - 1) / within
            seconds += one.runs * one.moved * far_share / chip.dcn
    return seconds + max(permutes.values(), default=0.0)


def traffic(program: Program) -> int:
    """Bytes that a run of the program reads from and writes to HBM, as its instructions say.

    Operands and results of every instruction that runs, those in nearer memory left out; of an
    operand that a fusion only slices, the slices. Kernels may read an operand more than once and
    are counted as if they read it once.
    """
    total = 0
    fused = {
        name
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode != "while"
        for role, names in instruction.called.items()
        if role in ("calls", "to_apply") and instruction.opcode not in ("call", "async-start")
        for name in names
    }
    for computation in program.computations.values():
        runs = program.runs[computation.name]
        if not runs or computation.name in fused:
            continue
        for instruction in computation.instructions.values():
            if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
                total += runs * _touched(instruction, computation, program)
    return total


def _touched(instruction: Instruction, computation: Computation, program: Program) -> int:
    operands = [computation.instructions[name].result for name in instruction.operands]
    if instruction.opcode == "custom-call" and not operands:
        return 0  # sets memory aside
    if instruction.opcode.endswith("-start"):
        # a copy or a collective: what it reads, and beside it what it writes
        written = instruction.result[len(operands) : 2 * len(operands)] or instruction.result
        return sum(map(_bytes, operands)) + _bytes(written)
    if instruction.opcode in _SLICES:
        return 2 * _bytes(instruction.result)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _bytes(operands[1])
    if instruction.opcode != "fusion":
        return _bytes(instruction.result) + sum(map(_bytes, operands))
    return _fusion_bytes(instruction, operands, program)


def _fusion_bytes(
    fusion: Instruction, operands: Sequence[Sequence[Array]], program: Program
) -> int:
    inside = program.computations[fusion.called["calls"][0]]
    wholes = enumerate(map(_bytes, operands))
    read = sum(min(whole, _read(inside, i, whole, program)) for i, whole in wholes)
    root, lines = inside.root, inside.instructions
    made = [lines[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(made) != len(fusion.result):
        return read + _bytes(fusion.result)
    return read + sum(_written(x, a, lines) for x, a in zip(made, fusion.result, strict=True))


def _read(inside: Computation, index: int, whole: int, program: Program) -> int:
    """Bytes that a fusion reads of an operand of so many; of one that it slices, the slices."""
    lines = inside.instructions.values()
    names = [x.name for x in lines if x.opcode == "parameter" and int(x.inside) == index]
    total = 0
    for use in lines:
        at = [i for i, name in enumerate(use.operands) if name in names]
        if not at:
            continue
        if use.opcode in _RENAMES:
            names.append(use.name)
        elif use.opcode in _SLICES and at == [0]:
            total += sum(a.bytes for a in use.result)
        elif use.opcode == "fusion":
            nested = program.computations[use.called["calls"][0]]
            total += sum(_read(nested, i, whole, program) for i in at)
        elif use.opcode != "dynamic-update-slice" or at != [0]:  # which changes it in place
            return whole
    return total


def _written(made: Instruction, result: Array, lines: Mapping[str, Instruction]) -> int:
    """Bytes that a fusion writes of a result."""
    while made.opcode in _RENAMES:
        made = lines[made.operands[0]]
    if made.opcode == "dynamic-update-slice" and result.in_hbm:
        return sum(a.bytes for a in lines[made.operands[1]].result)
    return _bytes([result])


def _bytes(found: Sequence[Array]) -> int:
    return sum(a.bytes for a in found if a.in_hbm)


def _extent(places: Sequence[Place]) -> tuple[int, ...]:
    """Sizes of the torus of a slice."""
    return tuple(max(axis) + 1 for axis in zip(*(p.coords for p in places), strict=True))


def _bandwidth(members: Sequence[Place], extent: Sequence[int], chip: Chip) -> float:
    """Bytes/s that each chip of a group receives, over all dimensions that the group spans."""
    first = members[0].slice
    spans = zip(*(p.coords for p in members if p.slice == first), strict=True)
    total = 0.0
    for axis, size in zip(spans, extent, strict=True):
        spanned = len(set(axis))
        if spanned > 1:
            closed = spanned == size and size % chip.ring == 0
            total += chip.link * (2 if closed else 1)
    return total or chip.link  # the cores of one chip
