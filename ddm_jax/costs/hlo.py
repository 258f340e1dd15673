"""The text of a compiled program (HLO) -> its computations, and how often each of them runs.

XLA prints the body of a loop once, however often the loop runs. What a program does in one run is
therefore what each instruction does, times the number of runs of its computation.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# bits of an element, for the types whose name does not have them as digits
BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^{}]*\})?")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_NAME = re.compile(r"%([\w.\-]+)")


class HloError(ValueError):
    """The text of a compiled program cannot be read."""


@dataclass(frozen=True)
class HloArray:
    """Type and shape of an array; `in_hbm` is False if it is kept in nearer memory."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> int:
        """Size without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclass(frozen=True)
class Instruction:
    """One line of HLO: name = result opcode(arguments), attributes.

    Attributes:
      name: unique within its computation.
      result: the arrays that it returns.
      opcode: such as "fusion" or "all-reduce".
      operands: names of the instructions whose results it takes.
      arguments: the text between the parentheses.
      attributes: the text after the parentheses.
      is_root: whether its computation returns its result.
    """

    name: str
    result: tuple[HloArray, ...]
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations that it runs, by role (calls, body, condition, ...)."""
        found = {}
        for role, several, one in _CALLED.findall(self.attributes):
            names = [part.strip().lstrip("%") for part in (several or one).split(",")]
            found[role] = tuple(names)
        return found


@dataclass(frozen=True)
class Computation:
    """A computation with its instructions by name; `is_entry` marks where the program starts."""

    name: str
    is_entry: bool
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        for instruction in self.instructions.values():
            if instruction.is_root:
                return instruction
        raise HloError(f"HLO computation {self.name} has no ROOT.")


@dataclass(frozen=True)
class HloProgram:
    """A compiled program.

    Attributes:
      computations: by name.
      runs: how often one run of the program runs each computation.
      unknown_loops: number of loops whose trip count could not be read.
    """

    computations: Mapping[str, Computation]
    runs: Mapping[str, int]
    unknown_loops: int

    def instructions(self) -> Iterator[tuple[Computation, Instruction]]:
        """Every instruction, with the computation that it is in."""
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                yield computation, instruction


def parse(text: str, while_trip_count: int = 1, cheapest_branch: bool = False) -> HloProgram:
    """Parses `jax.stages.Compiled.as_text()`.

    Args:
      text: HLO after all compiler passes.
      while_trip_count: trips of a loop whose trip count cannot be read.
      cheapest_branch: of a conditional, only the branch of the fewest instructions runs; otherwise
        each branch runs once.

    Raises:
      HloError: a line has an unknown form.
    """
    computations: dict[str, Computation] = {}
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            lines = {}
            computations[header[2]] = Computation(header[2], bool(header[1]), lines)
        elif match := _INSTRUCTION.match(line):
            instruction = _parse_instruction(match[2], match[3], is_root=bool(match[1]))
            lines[instruction.name] = instruction
    runs, unknown = _count_runs(computations, while_trip_count, cheapest_branch)
    return HloProgram(computations, runs, unknown)


def parse_arrays(text: str) -> tuple[HloArray, ...]:
    """The arrays of a printed shape; those of a tuple in their order."""
    return tuple(
        HloArray(
            dtype,
            tuple(int(n.lstrip("<=")) for n in dims.split(",") if n),
            not re.search(r"S\([1-9]", layout or ""),
        )
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _parse_instruction(name: str, text: str, is_root: bool) -> Instruction:
    # the shape of a tuple is in parentheses; any other shape has no space
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    shape, rest = text[:end], text[end:].strip()
    opens = rest.find("(")
    if end < 0 or opens < 0:
        raise HloError(f"HLO instruction in an unknown form: {text[:200]}")
    closes = _closing(rest, opens)
    arguments = rest[opens + 1 : closes]
    return Instruction(
        name,
        result=parse_arrays(shape),
        opcode=rest[:opens],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[closes + 1 :],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """The index where the parenthesis at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise HloError(f"HLO line without a closing parenthesis: {text[:200]}")


def _count_runs(
    computations: Mapping[str, Computation], while_trip_count: int, cheapest_branch: bool
) -> tuple[dict[str, int], int]:
    """(runs of each computation, number of loops of unknown trip count)."""
    runs = dict.fromkeys(computations, 0)
    unknown = 0

    def visit(computation: Computation, times: int) -> None:
        nonlocal unknown
        runs[computation.name] += times
        for instruction in computation.instructions.values():
            if instruction.opcode in ("async-update", "async-done"):
                continue  # repeats the names of what its start has run
            trips = 1
            if instruction.opcode == "while":
                found = _trip_count(instruction, computation, computations)
                unknown += found is None
                trips = found or while_trip_count
            called = [
                computations[name]
                for names in instruction.called.values()
                for name in names
                if name in computations
            ]
            if instruction.opcode == "conditional" and cheapest_branch:
                called = [min(called, key=lambda branch: len(branch.instructions))]
            for one in called:
                visit(one, times * trips)

    for computation in computations.values():
        if computation.is_entry:
            visit(computation, 1)
    return runs, unknown


def _trip_count(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """Trips of a while: as the compiler notes them, or from a counter compared with a constant.

    Args:
      loop: the while.
      around: the computation that it is in.
      computations: of the program.

    Returns:
      None if the trip count cannot be read.
    """
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
    index_text = re.search(r"index=(\d+)", counter.attributes)
    carried = around.instructions.get(loop.operands[0])
    if index_text is None or carried is None:
        return None
    index = int(index_text[1])
    start = _constant(around, carried.operands[index]) if carried.opcode == "tuple" else None
    following = body.instructions[body.root.operands[index]]
    steps = [_constant(body, name) for name in following.operands]
    step = next((s for s in steps if s is not None), None) if following.opcode == "add" else None
    # jax's counters start at 0 and go up by 1; the compiler may have peeled or unrolled the loop
    return math.ceil((stop - (start or 0)) / (step or 1))


def _constant(computation: Computation, name: str) -> int | None:
    """The integer that an instruction holds, through copies; None if it is not a constant."""
    instruction = computation.instructions.get(name)
    while instruction and instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None
