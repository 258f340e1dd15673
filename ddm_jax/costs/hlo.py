"""A compiled program as text -> its computations, and how often each of them runs.

XLA prints a loop once, however long it runs: what a program does in a step is what each
instruction does times the number of runs of the computation that it is in.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

BITS = {"pred": 8, "token": 0, "opaque": 0}  # of the others, the digits in the name
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^{}]*\})?")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """Type and shape of an array; in_hbm is False where it is kept in a nearer memory."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> int:
        """Without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclass(frozen=True)
class Instruction:
    """One line: name = result opcode(operands), attributes."""

    name: str
    result: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str  # what is in the parentheses
    attributes: str
    root: bool

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations that it runs, by role."""
        found = {}
        for role, several, one in _CALLED.findall(self.attributes):
            names = [part.strip().lstrip("%") for part in (several or one).split(",")]
            found[role] = tuple(names)
        return found


@dataclass(frozen=True)
class Computation:
    """Its instructions, by name."""

    name: str
    entry: bool
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.instructions.values() if i.root)


@dataclass(frozen=True)
class Program:
    """The computations by name, and how often a run of the program runs each.

    unknown_loops: the number of loops whose length could not be read.
    """

    computations: Mapping[str, Computation]
    runs: Mapping[str, int]
    unknown_loops: int


def parse(text: str, turns: int = 1, shorter: bool = False) -> Program:
    """Reads `jax.stages.Compiled.as_text()`.

    turns: of a loop of unknown length. shorter: whether of a branch only the way of the fewest
    instructions runs, not each once.
    """
    computations: dict[str, Computation] = {}
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            lines = {}
            computations[header[2]] = Computation(header[2], bool(header[1]), lines)
        elif match := _INSTRUCTION.match(line):
            instruction = _instruction(match[2], match[3], bool(match[1]))
            lines[instruction.name] = instruction
    runs, unknown = _runs(computations, turns, shorter)
    return Program(computations, runs, unknown)


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in a printed shape, those of a tuple in their order."""
    return tuple(
        Array(
            dtype,
            tuple(int(n.lstrip("<=")) for n in dims.split(",") if n),
            not re.search(r"S\([1-9]", layout or ""),
        )
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _instruction(name: str, text: str, root: bool) -> Instruction:
    # a tuple is in parentheses, and any other shape has no space
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].strip()
    opens = rest.index("(")
    closes = _closing(rest, opens)
    inside = rest[opens + 1 : closes]
    return Instruction(
        name,
        arrays(shape),
        rest[:opens],
        tuple(_NAME.findall(inside)),
        inside,
        rest[closes + 1 :],
        root,
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"HLO line without a closing parenthesis: {text[:200]}")


def _runs(
    computations: Mapping[str, Computation], unknown_turns: int, shorter: bool
) -> tuple[dict[str, int], int]:
    runs = dict.fromkeys(computations, 0)
    unknown = 0

    def visit(computation: Computation, times: int) -> None:
        nonlocal unknown
        runs[computation.name] += times
        for instruction in computation.instructions.values():
            if instruction.opcode in ("async-update", "async-done"):
                continue  # names again what its start has run
            turns = 1
            if instruction.opcode == "while":
                found = _trip_count(instruction, computation, computations)
                unknown += found is None
                turns = found or unknown_turns
            called = [
                computations[name]
                for names in instruction.called.values()
                for name in names
                if name in computations
            ]
            if instruction.opcode == "conditional" and shorter:
                called = [min(called, key=lambda way: len(way.instructions))]
            for one in called:
                visit(one, times * turns)

    for computation in computations.values():
        if computation.entry:
            visit(computation, 1)
    return runs, unknown


def _trip_count(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """Turns of a while: as noted by the compiler, or of a counter compared with a constant."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(noted[1])
    condition = computations[loop.called["condition"][0]]
    body = computations[loop.called["body"][0]]
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter = condition.instructions.get(compare.operands[0])
    stop = _constant(condition, compare.operands[1])
    if stop is None or counter is None or counter.opcode != "get-tuple-element":
        return None
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    carried = around.instructions.get(loop.operands[0])
    start = _constant(around, carried.operands[index]) if carried.opcode == "tuple" else None
    following = body.instructions[body.root.operands[index]]
    steps = [_constant(body, name) for name in following.operands]
    step = next((s for s in steps if s is not None), None) if following.opcode == "add" else None
    # a counter of jax starts at 0 and goes by 1; the compiler may have peeled or unrolled
    return math.ceil((stop - (start or 0)) / (step or 1))


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.instructions.get(name)
    while instruction and instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.inside) if re.fullmatch(r"-?\d+", instruction.inside) else None
