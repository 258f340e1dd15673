"""What a compiled program sends over the network: the collectives in its text, with their bytes."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddm_jax.costs.hlo import Computation, Instruction, Program

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    operand_bytes: what a device puts in, in one run. groups: the partitions that exchange among
    themselves, the pairs (from, to) of a collective-permute. runs: in one run of the program.
    source: the operation of the traced program that it came from.
    """

    kind: str
    dtype: str
    operand_bytes: int
    groups: Groups
    runs: int
    source: str

    @property
    def size(self) -> int:
        """Devices of a group."""
        return max(map(len, self.groups))

    @property
    def moved(self) -> float:
        """Bytes that each device sends, and receives, in one run.

        By the ring algorithms, which are optimal in bytes (Patarasuk and Yuan 2009, Bandwidth
        optimal all-reduce algorithms): of n bytes put in by each of g devices, an all-reduce
        sends 2 n (g - 1) / g, a reduce-scatter and an all-to-all n (g - 1) / g, an all-gather
        n (g - 1), a permutation n.
        """
        n, g = self.operand_bytes, self.size
        if self.kind in ("collective-permute", "collective-broadcast"):
            return n
        factor = {"all-reduce": 2 / g, "all-gather": 1}.get(self.kind, 1 / g)
        return n * (g - 1) * factor


def collectives(program: Program, devices: int) -> list[Collective]:
    """All that run and have more than one device to a group; an asynchronous pair counts once.

    devices: partitions of the program.

    Raises:
      ValueError: replica groups in a notation that is not known.
    """
    # XLA for TPUs writes a reduce-scatter as a fusion of this name, with an all-reduce in it
    scattering = {
        name
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        for name in instruction.called.get("calls", ())
        if "all-reduce-scatter" in instruction.name or "all-reduce-scatter" in name
    }
    found = []
    pieces: dict[tuple[str, str], Collective] = {}
    fused = _fused(program)
    for computation in program.computations.values():
        runs = program.runs[computation.name]
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if not runs or kind not in KINDS:
                continue
            if kind == "all-reduce" and computation.name in scattering:
                kind = "reduce-scatter"
            one = _collective(kind, instruction, computation, runs, devices)
            if one.size < 2:
                continue
            # one that runs beside several fusions, a piece with each, is printed in all of them
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and computation.name in fused:
                last = pieces.setdefault((kind, channel[1]), one)
                pieces[kind, channel[1]] = max(last, one, key=lambda c: c.runs)
            else:
                found.append(one)
    return [*found, *pieces.values()]


def _fused(program: Program) -> set[str]:
    """Names of the computations that are a fusion."""
    return {
        name
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
        for name in instruction.called.get("calls", ())
    }


def moved_bytes(found: Sequence[Collective]) -> dict[str, float]:
    """Bytes that each device sends in one run of the program, by kind, the most first."""
    total: Counter[str] = Counter()
    for one in found:
        total[one.kind] += one.moved * one.runs
    return dict(total.most_common())


def replica_groups(attributes: str, devices: int) -> Groups:
    """The groups of partitions in the attributes of an instruction, in any of XLA's notations.

    Raises:
      ValueError: there are none that can be read.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        return _listed(pairs[1])
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        return _listed(listed[1]) or (tuple(range(devices)),)
    if iota := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        shape, over, order = iota.groups()
        return _rows(_iota(over, order).reshape(_numbers(shape)))
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes
    ):
        return _of_mesh(mesh[1], mesh[2], mesh[3])
    raise ValueError(f"replica groups in an unknown notation: {attributes[:200]}")


def _collective(
    kind: str, instruction: Instruction, computation: Computation, runs: int, devices: int
) -> Collective:
    put_in = [a for name in instruction.operands for a in computation.instructions[name].result]
    op_name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind,
        ",".join(sorted({a.dtype for a in put_in})),
        sum(a.bytes for a in put_in),
        replica_groups(instruction.attributes, devices),
        runs,
        op_name[1] if op_name else "",
    )


def _listed(text: str) -> Groups:
    groups = re.findall(r"\{([\d,]*)\}", text)
    return tuple(tuple(int(n) for n in group.split(",") if n) for group in groups)


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(int(n) for n in row) for row in ids.reshape(-1, ids.shape[-1]))


def _mesh_devices(order: str | None, number: int) -> np.ndarray:
    """The devices of a mesh one after another: in order, [16,16]T(1,0), or a list."""
    if not order:
        return np.arange(number)
    if iota := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        return _iota(*iota.groups()).reshape(-1)
    return np.array(_numbers(order))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(over: str, order: str | None) -> np.ndarray:
    """0, 1, ... in this shape, its axes in this order."""
    ids = np.arange(math.prod(_numbers(over))).reshape(_numbers(over))
    return ids.transpose(_numbers(order)) if order else ids


def _of_mesh(sizes: str, order: str | None, chosen: str) -> Groups:
    """mesh['a'=4,'b'=2] {'b'}: the groups along these axes; 'a':(2)2 is the second factor of a."""
    mesh = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", sizes)}
    parts = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen)
    names = [name for name, *_ in parts]
    if len(set(names)) < len(names) or not set(names) <= mesh.keys():
        raise ValueError(f"replica groups of a mesh that cannot be read: [{sizes}] {{{chosen}}}")
    split = {name: (int(before or 1), int(size or mesh[name])) for name, before, size in parts}
    shape: list[int] = []
    along = {}
    for name, size in mesh.items():
        before, own = split.get(name, (size, 1))
        along[name] = len(shape) + 1
        shape += [before, own, size // (before * own)]
    last = [along[name] for name in names]
    ids = _mesh_devices(order, math.prod(shape)).reshape(shape)
    axes = [i for i in range(len(shape)) if i not in last] + last
    return _rows(ids.transpose(axes).reshape(-1, math.prod(shape[i] for i in last)))
