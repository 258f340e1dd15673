"""From FLOPs and bytes to a lower bound on step time (Williams et al. 2009, Roofline)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddm_jax.costs.chips import Chip
from ddm_jax.costs.collectives import Collective, Groups
from ddm_jax.costs.hlo import Computation, HloArray, HloProgram, Instruction

# instructions that do not read or write memory by themselves
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "async-start", "async-update",
    "async-done", "opt-barrier",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_RENAMES = ("bitcast", "reshape")


@dataclass(frozen=True)
class Place:
    """Where a device is: its slice (a node for GPUs), and its chip's coordinates in the torus."""

    slice: int
    coords: tuple[int, ...]


@dataclass(frozen=True)
class Roofline:
    """Lower bounds, in seconds, on what a step of a device spends on each of three resources.

    The three add up where the compiler makes one wait for another, and only the longest counts
    where they overlap fully. At peak rates, which a real step does not reach, it would take
    between `overlapped` and `serial`.
    """

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """Step time if compute, memory and network overlap fully."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """Step time if network and chip wait for each other."""
        return max(self.compute, self.memory) + self.network

    @property
    def bound(self) -> str:
        """The resource that takes longest: "compute", "memory" or "network"."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=lambda name: times[name])


def roofline(
    flops: float,
    hbm_bytes: float,
    found: Sequence[Collective],
    places: Sequence[Place],
    chip: Chip,
) -> Roofline:
    """The roofline of a step.

    Args:
      flops: of a device.
      hbm_bytes: that a device reads from and writes to HBM.
      found: the collectives of the step.
      places: where the program's partitions are, in their order.
      chip: its peak rates.
    """
    return Roofline(
        compute=flops * chip.devices / chip.flops,
        memory=hbm_bytes * chip.devices / chip.hbm_bandwidth,
        network=network_seconds(found, places, chip),
    )


def network_seconds(found: Sequence[Collective], places: Sequence[Place], chip: Chip) -> float:
    """Seconds that the collectives of a step take at the full speed of the links.

    A group that spans several dimensions of the torus has a ring in each, and divides its bytes
    among them (as XLA does). A ring moves bytes both ways; a dimension that is not closed moves
    them one way at a time. Latency is left out. Permutations in opposite directions overlap. A
    group of several slices first reduces (or finally gathers) within its slice; the data-centre
    network carries the rest, from every chip at once.
    """
    extent = _extent(places)
    seconds = 0.0
    permutes: dict[Groups, float] = {}
    for one in found:
        if one.kind == "collective-permute":
            crosses = any(places[a].slice != places[b].slice for a, b in one.groups)
            bandwidth = chip.dcn if crosses else chip.link
            permutes[one.groups] = permutes.get(one.groups, 0.0) + one.moved * one.runs / bandwidth
            continue
        members = [places[i] for i in max(one.groups, key=len)]
        slices = len({p.slice for p in members})
        within = len(members) // slices
        # the part within a slice, of the (g - 1) / g of all bytes that a ring of g sends
        near_share = (within - 1) / within * len(members) / (len(members) - 1)
        if within > 1:
            seconds += one.runs * one.moved * near_share / _bandwidth(members, extent, chip)
        if slices > 1:
            far_share = (slices - 1) / slices * len(members) / (len(members) - 1) / within
            seconds += one.runs * one.moved * far_share / chip.dcn
    return seconds + max(permutes.values(), default=0.0)


def hbm_traffic(program: HloProgram) -> int:
    """Bytes that a run of the program reads from and writes to HBM, by its instructions.

    Counts operands and results of every instruction that runs, except those in nearer memory; of
    an operand that a fusion only slices, the slices. A kernel counts as if it read each operand
    once, although it may read it more often.
    """
    inside_others = _computations_inside_instructions(program)
    total = 0
    for computation, instruction in program.instructions():
        runs = program.runs[computation.name]
        if not runs or computation.name in inside_others:
            continue
        if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
            total += runs * _bytes_touched(instruction, computation, program)
    return total


def _computations_inside_instructions(program: HloProgram) -> set[str]:
    """Names of the computations whose traffic is that of the instruction which applies them."""
    return {
        name
        for _, instruction in program.instructions()
        if instruction.opcode not in ("while", "call", "async-start")
        for role in ("calls", "to_apply")
        for name in instruction.called.get(role, ())
    }


def _bytes_touched(instruction: Instruction, computation: Computation, program: HloProgram) -> int:
    """Bytes that one run of an instruction reads and writes."""
    operands = [computation.instructions[name].result for name in instruction.operands]
    if instruction.opcode == "custom-call" and not operands:
        return 0  # only allocates memory
    if instruction.opcode.endswith("-start"):
        # a copy or a collective; its result lists what it reads, then what it writes
        written = instruction.result[len(operands) : 2 * len(operands)] or instruction.result
        return sum(map(_hbm_bytes, operands)) + _hbm_bytes(written)
    if instruction.opcode in _SLICES:
        return 2 * _hbm_bytes(instruction.result)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _hbm_bytes(operands[1])
    if instruction.opcode == "fusion":
        return _fusion_bytes(instruction, operands, program)
    return _hbm_bytes(instruction.result) + sum(map(_hbm_bytes, operands))


def _fusion_bytes(
    fusion: Instruction, operands: Sequence[Sequence[HloArray]], program: HloProgram
) -> int:
    body = program.computations[fusion.called["calls"][0]]
    sizes = enumerate(map(_hbm_bytes, operands))
    read = sum(min(size, _bytes_read(body, i, size, program)) for i, size in sizes)
    root, lines = body.root, body.instructions
    outputs = [lines[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(outputs) != len(fusion.result):
        return read + _hbm_bytes(fusion.result)
    pairs = zip(outputs, fusion.result, strict=True)
    return read + sum(_bytes_written(output, array, lines) for output, array in pairs)


def _bytes_read(body: Computation, index: int, size: int, program: HloProgram) -> int:
    """Bytes that a fusion reads of an operand; of one that it slices, the slices.

    Args:
      body: the computation of the fusion.
      index: of the operand.
      size: bytes of the whole operand.
      program: with the fusions inside the fusion.
    """
    lines = body.instructions.values()
    names = [x.name for x in lines if x.opcode == "parameter" and int(x.arguments) == index]
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
            total += sum(_bytes_read(nested, i, size, program) for i in at)
        elif use.opcode != "dynamic-update-slice" or at != [0]:  # which updates it in place
            return size
    return total


def _bytes_written(output: Instruction, result: HloArray, lines: Mapping[str, Instruction]) -> int:
    """Bytes that a fusion writes of a result; of one that it updates in place, the update."""
    while output.opcode in _RENAMES:
        output = lines[output.operands[0]]
    if output.opcode == "dynamic-update-slice" and result.in_hbm:
        return sum(a.bytes for a in lines[output.operands[1]].result)
    return _hbm_bytes([result])


def _hbm_bytes(found: Sequence[HloArray]) -> int:
    return sum(a.bytes for a in found if a.in_hbm)


def _extent(places: Sequence[Place]) -> tuple[int, ...]:
    """The size of each dimension of a slice's torus."""
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
    return total or chip.link  # a group of the cores of one chip
