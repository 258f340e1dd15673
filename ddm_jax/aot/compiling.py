"""Compilation of a job for its machine, and the search for the largest batch that fits."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ddm_jax.aot.job import AotJob, make_aot_program
from ddm_jax.costs.chips import GIB, Chip
from ddm_jax.errors import UserError


@dataclass(frozen=True)
class CompileResult:
    """What the compiler answers.

    Attributes:
      fits: whether the program fits in a device's memory.
      needed_bytes: memory that the program needs on a device; nan if the compiler does not say.
      hlo_text: the compiled program; empty if the compiler ran out of memory.
      seconds: compile time.
    """

    fits: bool
    needed_bytes: float
    hlo_text: str
    seconds: float


def compile_job(job: AotJob) -> CompileResult:
    """Compiles a job; running out of device memory is a result, not an error.

    Raises:
      UserError: compilation fails for another reason.
    """
    program = make_aot_program(job)
    begin = time.perf_counter()
    try:
        compiled = program.jitted.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise UserError(f"Compilation failed: {message.splitlines()[0]}") from error
        needed = bytes_needed(message, program.argument_bytes)
        return CompileResult(False, needed, "", time.perf_counter() - begin)
    peak = _peak_bytes(compiled.memory_analysis())
    fits = peak <= job.chip.hbm * GIB  # the compiler for GPUs does not check it
    return CompileResult(fits, peak, compiled.as_text(), time.perf_counter() - begin)


def search_largest_batch(job: AotJob) -> tuple[AotJob, dict[int, CompileResult]]:
    """Compiles the job at several batch sizes, and prints a line for each.

    The layout and the micro-batches of the recipe determine what a batch is a multiple of.

    Returns:
      The job with the largest batch that fits, or with the smallest if none fits; and the result
      for each batch size that was tried.
    """
    layout = job.layout
    unit = layout.axis_size(*layout.entry.batch_axes) * (
        1 if job.sampling else job.config.train.microbatches
    )
    trials: dict[int, CompileResult] = {}

    def fits(n: int) -> bool:
        result = trials[n * unit] = compile_job(job.with_batch(n * unit))
        print(f"batch {n * unit}: {verdict(result, job.chip)}", flush=True)
        return result.fits

    most = largest_fitting(fits, start=max(1, job.batch_size // unit))
    return job.with_batch(max(most, 1) * unit), trials


def largest_fitting(fits: Callable[[int], bool], start: int = 1) -> int:
    """The largest n >= 1 that fits; 0 if none does.

    Doubles or halves from `start`, then bisects. Assumes that whatever is smaller than an n that
    fits also fits.
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


def verdict(result: CompileResult, chip: Chip) -> str:
    """One line that says whether the program fits."""
    sizes = f"{result.needed_bytes / GIB:.2f} of {chip.hbm:.2f} GiB per device"
    return f"fits: {sizes}" if result.fits else f"does not fit: needs {sizes}"


def bytes_needed(message: str, argument_bytes: int) -> float:
    """Bytes of memory that the compiler asked for when it ran out; nan if it does not say.

    Args:
      message: of the error.
      argument_bytes: of the program's arguments, which are added where the message counts only
        temporaries.
    """
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if found := re.search(r"temporaries \(([\d.]+)([KMGT])\)", message):
        return float(found[1]) * unit[found[2]] + argument_bytes
    if found := re.search(r"Used ([\d.]+)([KMGT]) of", message):
        return float(found[1]) * unit[found[2]]
    return float("nan")


def _peak_bytes(stats: Any) -> int:
    """Bytes that a device holds at once; on a GPU, arguments, outputs and temporaries together."""
    given = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.peak_memory_in_bytes or given + stats.temp_size_in_bytes
