"""The report on a compiled job: as records, as JSON and as text."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ddm_jax.wording import counted

ASSUMPTIONS = (
    "Assumed: every matmul runs at the chip's bfloat16 peak, HBM and links run at full bandwidth, "
    "there is no latency, and the network waits for the chip (the compiler hides some of that "
    "wait). A real step takes longer than the time with full overlap; it can beat the time without "
    "overlap only by overlapping the network with compute."
)


@dataclass(frozen=True)
class CompileTarget:
    """What was compiled for which machine, by which versions.

    Attributes:
      topology: such as "v5e:16x16".
      slices: number of slices (TPUs) or nodes (GPUs).
      devices: of all slices.
      program: "train" or "sample".
      jax: version.
      compiler: name and version.
    """

    topology: str
    slices: int
    devices: int
    program: str
    jax: str
    compiler: str


@dataclass(frozen=True)
class JobSettings:
    """The settings of the recipe that memory and time depend on most."""

    objective: str
    attention: str
    remat: str
    layout: str
    mesh: dict[str, int]
    batch_size: int
    microbatches: int


@dataclass(frozen=True)
class MemoryFit:
    """Whether the program fits, in GiB of a device, and the seconds of compiling it."""

    fits: bool
    need_gib: float
    available_gib: float
    compile_s: float


@dataclass(frozen=True)
class CollectiveTotal:
    """Collectives that are alike, added up.

    Attributes:
      kind: such as "all-reduce".
      dtype: of the operands.
      group: devices in a group.
      stride: from the first partition of a group to the second.
      source: the operation of the traced program that they came from.
      bytes: that a device sends in a step.
      runs: in a step.
    """

    kind: str
    dtype: str
    group: int
    stride: int
    source: str
    bytes: float
    runs: int


@dataclass(frozen=True)
class ProgramTraffic:
    """What the compiled program moves; bytes are of a device in one step.

    Attributes:
      kernels: number of Pallas kernels.
      unknown_loops: loops whose trip count depends on the data.
      unknown_turns: trips that such a loop is counted with.
      network_bytes: sent by all collectives.
      collectives: bytes sent, by kind.
      largest_collectives: those that send most.
      hbm_bytes: read from and written to HBM.
    """

    kernels: int
    unknown_loops: int
    unknown_turns: int
    network_bytes: float
    collectives: dict[str, float]
    largest_collectives: tuple[CollectiveTotal, ...]
    hbm_bytes: int


@dataclass(frozen=True)
class StepEstimate:
    """FLOPs of a device in a train step, and the roofline's estimate of its time.

    Attributes:
      model_flops: three times those of the forward pass, which MFU is defined by.
      flops: including what is computed again to save memory.
      compute_s: seconds at peak FLOP/s.
      memory_s: seconds at full HBM bandwidth.
      network_s: seconds at full bandwidth of the links.
      bound: which of the three takes longest.
      step_s: seconds of a step if the network waits for the chip.
      overlapped_step_s: if compute, memory and network overlap fully.
      tokens_per_s: over all devices, from step_s.
      mfu: model FLOPs utilisation, from step_s.
      overlapped_mfu: from overlapped_step_s.
    """

    model_flops: float
    flops: float
    compute_s: float
    memory_s: float
    network_s: float
    bound: str
    step_s: float
    overlapped_step_s: float
    tokens_per_s: float
    mfu: float
    overlapped_mfu: float


@dataclass(frozen=True)
class AotReport:
    """All that is known of a compiled job.

    `traffic` is None if the program does not fit; `step` also if it is the sampler.
    """

    target: CompileTarget
    settings: JobSettings
    memory: MemoryFit
    traffic: ProgramTraffic | None = None
    step: StepEstimate | None = None

    def to_json(self) -> dict[str, Any]:
        """One flat object with the fields of all parts that are not None."""
        result: dict[str, Any] = {}
        for part in (self.target, self.settings, self.memory, self.traffic, self.step):
            if part is not None:
                result |= dataclasses.asdict(part)
        return result


def report_text(report: AotReport) -> str:
    """The report as lines of text; those that a user came for are the last."""
    target, memory = report.target, report.memory
    sizes = f"{memory.need_gib:.2f} of {memory.available_gib:.2f} GiB per device"
    lines = [
        f"{target.program} step of {counted(report.settings.batch_size, 'sequence')} on "
        f"{counted(target.devices, 'device')} of {target.topology}, compiled in "
        f"{memory.compile_s:.0f} s (jax {target.jax}, {target.compiler}; it was not run):",
    ]
    if report.traffic:
        lines += _traffic_lines(report.traffic)
    if report.traffic and report.step:
        lines += _step_lines(report.traffic, report.step)
    if not memory.fits:
        splash = "config.model.attention=splash, " if "libtpu" in target.compiler else ""
        lines.append(
            f"  does not fit: needs {sizes}; use smaller batches, more "
            f"config.train.microbatches, config.model.remat=full, {splash}or a layout that "
            "splits the parameters"
        )
    else:
        lines.append(f"  fits: {sizes}")
    return "\n".join(lines)


def _traffic_lines(traffic: ProgramTraffic) -> list[str]:
    lines = []
    if traffic.kernels:
        lines.append(f"  {counted(traffic.kernels, 'Pallas kernel')}")
    lines.append(f"  network: each device sends {traffic.network_bytes / 1e6:,.1f} MB in a step")
    for one in traffic.largest_collectives:
        lines.append(
            f"    {one.bytes / 1e6:10,.1f} MB  {one.kind} of {one.dtype} over {one.group} devices, "
            f"{one.runs} times: {one.source[-60:]}"
        )
    if traffic.unknown_loops:
        lines.append(
            f"  the length of {traffic.unknown_loops} loops depends on the data: each is counted "
            f"with {traffic.unknown_turns} trips, those of the head if every position carries loss"
        )
    return lines


def _step_lines(traffic: ProgramTraffic, step: StepEstimate) -> list[str]:
    return [
        f"  compute {step.flops / 1e12:8.2f} TFLOP per device ({step.model_flops / 1e12:.2f} of "
        f"the model): {step.compute_s * 1e3:8.1f} ms",
        f"  memory  {traffic.hbm_bytes / 1e9:8.1f} GB of HBM traffic: {step.memory_s * 1e3:8.1f} "
        "ms",
        f"  network {traffic.network_bytes / 1e9:8.3f} GB: {step.network_s * 1e3:8.1f} ms",
        f"  {ASSUMPTIONS}",
        f"  step: {step.step_s * 1e3:.1f} ms (the longer of compute and memory, plus the network), "
        f"{step.tokens_per_s:,.0f} tokens/s, MFU {step.mfu:.1%}; bound by {step.bound}",
        f"  step if all three overlap: {step.overlapped_step_s * 1e3:.1f} ms, MFU "
        f"{step.overlapped_mfu:.1%}",
    ]
