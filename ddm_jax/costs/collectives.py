"""The collectives in the text of a compiled program, and the bytes that they send."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddm_jax.costs.hlo import Computation, HloError, HloProgram, Instruction

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

    Attributes:
      kind: one of KINDS.
      dtype: of its operands; several are joined by commas.
      operand_bytes: bytes that a device puts in, in one run of the collective.
      groups: the partitions that exchange among themselves; for a collective-permute the pairs
        (from, to).
      runs: how often it runs in one run of the program.
      source: the operation of the traced program that it came from; empty if not known.
    """

    kind: str
    dtype: str
    operand_bytes: float
    groups: Groups
    runs: int
    source: str

    @property
    def size(self) -> int:
        """Number of devices in a group."""
        return max(map(len, self.groups))

    @property
    def moved(self) -> float:
        """Bytes that each device sends, and receives, in one run of the collective.

        By the ring algorithms, which are optimal in bytes (Patarasuk and Yuan 2009, Bandwidth
        optimal all-reduce algorithms): if each of g devices puts in n bytes, an all-reduce sends
        2 n (g - 1) / g, a reduce-scatter and an all-to-all n (g - 1) / g, an all-gather n (g - 1),
        and a permutation n.
        """
        n, g = self.operand_bytes, self.size
        if self.kind in ("collective-permute", "collective-broadcast"):
            return n
        factor = {"all-reduce": 2 / g, "all-gather": 1}.get(self.kind, 1 / g)
        return n * (g - 1) * factor


def find_collectives(program: HloProgram, devices: int) -> list[Collective]:
    """All collectives that run and have more than one device in a group.

    An asynchronous pair (start and done) counts once.

    Args:
      program: the parsed program.
      devices: number of its partitions.

    Raises:
      HloError: replica groups in an unknown notation.
    """
    scattering = _scattering_fusions(program)
    fused = _fused_computations(program)
    found = []
    pieces: dict[tuple[str, str], Collective] = {}
    for computation, instruction in program.instructions():
        runs = program.runs[computation.name]
        kind = instruction.opcode.removesuffix("-start")
        if not runs or kind not in KINDS:
            continue
        if kind == "all-reduce" and computation.name in scattering:
            kind = "reduce-scatter"
        one = _collective(kind, instruction, computation, runs, devices)
        if one.size < 2:
            continue
        # one that overlaps with several fusions, a piece with each, is printed in all of them
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if channel and computation.name in fused:
            last = pieces.setdefault((kind, channel[1]), one)
            pieces[kind, channel[1]] = max(last, one, key=lambda c: c.runs)
        else:
            found.append(one)
    return [*found, *pieces.values()]


def moved_bytes(found: Sequence[Collective]) -> dict[str, float]:
    """Bytes that each device sends in one run of the program, by kind; the largest first."""
    total: dict[str, float] = {}
    for one in found:
        total[one.kind] = total.get(one.kind, 0) + one.moved * one.runs
    return dict(sorted(total.items(), key=lambda item: item[1], reverse=True))


def replica_groups(attributes: str, devices: int) -> Groups:
    """The groups of partitions in an instruction's attributes, in any of XLA's notations.

    Args:
      attributes: text of the instruction after its parentheses.
      devices: number of partitions of the program.

    Raises:
      HloError: the notation is unknown.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        return _listed_groups(pairs[1])
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        return _listed_groups(listed[1]) or (tuple(range(devices)),)
    if iota := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        shape, over, order = iota.groups()
        return _as_groups(_iota(over, order).reshape(_numbers(shape)))
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes
    ):
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    raise HloError(f"replica groups in an unknown notation: {attributes[:200]}")


def _scattering_fusions(program: HloProgram) -> set[str]:
    """Names of the fusions that are a reduce-scatter.

    XLA for TPUs writes a reduce-scatter as a fusion of this name, with an all-reduce in it.
    """
    return {
        name
        for _, instruction in program.instructions()
        for name in instruction.called.get("calls", ())
        if "all-reduce-scatter" in instruction.name or "all-reduce-scatter" in name
    }


def _fused_computations(program: HloProgram) -> set[str]:
    """Names of the computations that are the body of a fusion."""
    return {
        name
        for _, instruction in program.instructions()
        if instruction.opcode == "fusion"
        for name in instruction.called.get("calls", ())
    }


def _collective(
    kind: str, instruction: Instruction, computation: Computation, runs: int, devices: int
) -> Collective:
    inputs = [a for name in instruction.operands for a in computation.instructions[name].result]
    op_name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind,
        ",".join(sorted({a.dtype for a in inputs})),
        sum(a.bytes for a in inputs),
        replica_groups(instruction.attributes, devices),
        runs,
        op_name[1] if op_name else "",
    )


def _listed_groups(text: str) -> Groups:
    groups = re.findall(r"\{([\d,]*)\}", text)
    return tuple(tuple(int(n) for n in group.split(",") if n) for group in groups)


def _as_groups(ids: np.ndarray) -> Groups:
    return tuple(tuple(int(n) for n in row) for row in ids.reshape(-1, ids.shape[-1]))


def _mesh_devices(order: str | None, number: int) -> np.ndarray:
    """The devices of a mesh in its order: None (ascending), "[16,16]T(1,0)", or a list of ids."""
    if not order:
        return np.arange(number)
    if iota := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        return _iota(*iota.groups()).reshape(-1)
    return np.array(_numbers(order))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(over: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in the shape `over`, its axes permuted to `order`."""
    ids = np.arange(math.prod(_numbers(over))).reshape(_numbers(over))
    return ids.transpose(_numbers(order)) if order else ids


def _mesh_groups(sizes: str, order: str | None, chosen: str) -> Groups:
    """The groups along the chosen axes of a mesh, such as mesh['a'=4,'b'=2] {'b'}.

    'a':(2)2 chooses the second factor of axis a.
    """
    mesh = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", sizes)}
    parts = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen)
    names = [name for name, *_ in parts]
    if len(set(names)) < len(names) or not set(names) <= mesh.keys():
        raise HloError(f"replica groups of a mesh that cannot be read: [{sizes}] {{{chosen}}}")
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
    return _as_groups(ids.transpose(axes).reshape(-1, math.prod(shape[i] for i in last)))
