"""Compilation of a job for its machine, and the search for the largest batch that fits."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ddm_jax.aot.job import (
    Job,
    make_aot_program,
)
from ddm_jax.costs.chips import GIB, Chip
from ddm_jax.errors import UserError


@dataclass(frozen=True)
class CompileResult:
    """What the compiler says. need: bytes of a device's memory; text: the program, if it fits."""

    fits: bool
    need: float
    text: str
    seconds: float


def search(job: Job, trials: dict[int, CompileResult]) -> Job:
    """The job with the largest batch that fits, or with the smallest if none does.

    trials: takes the answer for each batch that was tried. The layout and the micro-batches of the
    recipe say what a batch is a multiple of.
    """
    layout = job.layout
    unit = layout.size(*layout.row.batch) * (1 if job.sampling else job.config.train.microbatches)

    def fits(n: int) -> bool:
        answer = trials[n * unit] = compile_for(job.with_batch(n * unit))
        print(f"batch {n * unit}: {verdict(answer, job.chip)}", flush=True)
        return answer.fits

    most = largest_fitting(fits, start=max(1, job.batch_size // unit))
    return job.with_batch(max(most, 1) * unit)


def largest_fitting(fits: Callable[[int], bool], start: int = 1) -> int:
    """The largest n >= 1 that fits, 0 if none does; what is smaller than one that fits, fits too.

    From start by doubling or halving, then by bisection.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while low == 0 and high > 1:
        middle = high // 2
        low, high = (middle, high) if fits(middle) else (0, middle)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def compile_for(job: Job) -> CompileResult:
    """What the compiler says of a job; too little memory is an answer.

    Raises:
      UserError: the compiler refuses for another reason.
    """
    program = make_aot_program(job)
    begin = time.perf_counter()
    try:
        compiled = program.jitted.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise UserError(f"The compiler refuses: {text.splitlines()[0]}") from error
        return CompileResult(
            False, bytes_needed(text, program.held), "", time.perf_counter() - begin
        )
    peak = _peak(compiled.memory_analysis())
    fits = peak <= job.chip.hbm * GIB  # the compiler for GPUs does not say it
    return CompileResult(fits, peak, compiled.as_text(), time.perf_counter() - begin)


def _peak(stats: Any) -> int:
    """Bytes that a device holds at once; on a GPU what the program is given and what it takes."""
    given = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.peak_memory_in_bytes or given + stats.temp_size_in_bytes


def bytes_needed(message: str, held: int) -> float:
    """Bytes of memory that the compiler asks for when it runs out of them.

    held: of the arguments, which it does not count where it speaks of temporaries alone.
    """
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if found := re.search(r"temporaries \(([\d.]+)([KMGT])\)", message):
        return float(found[1]) * unit[found[2]] + held
    if found := re.search(r"Used ([\d.]+)([KMGT]) of", message):
        return float(found[1]) * unit[found[2]]
    return float("nan")


def verdict(answer: CompileResult, chip: Chip) -> str:
    """One line: whether it fits."""
    sizes = f"{answer.need / GIB:.2f} of {chip.hbm:.2f} GiB a device"
    return f"fits: {sizes}" if answer.fits else f"does not fit: needs {sizes}"
