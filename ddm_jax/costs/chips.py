"""Public figures of the TPUs and GPUs that `ddm_jax.aot` compiles for."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A TPU or a GPU. Figures are per chip; those of links are per direction of one link.

    Attributes:
      flops: peak in bfloat16, in FLOP/s.
      hbm_bandwidth: in bytes/s.
      link: bytes/s of a link of the network between chips (ICI). A TPU has two links for each
        dimension of the torus. The GPUs of a node count as a ring whose two links are half of
        NVLink each.
      dcn: bytes/s of a chip's share of the data-centre network.
      ring: a dimension of the torus closes to a ring if its size is a multiple of this.
      hbm: GiB that a program may use on a device. For a TPU, what the compiler grants (libtpu
        0.0.42.1, read from its message when memory runs out); for a GPU, 75 % of its memory, which
        is what jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
      devices: jax devices (cores) on a chip.
      target: XLA's text description of a GPU; empty for a TPU.
    """

    flops: float
    hbm_bandwidth: float
    link: float
    dcn: float
    ring: int
    hbm: float
    devices: int = 1
    target: str = ""


def _hopper(name: str, memory: float, bandwidth: float) -> str:
    """XLA's description of a GPU of compute capability 9.0 with 132 multiprocessors.

    Args:
      name: as CUDA reports it.
      memory: GiB.
      bandwidth: bytes/s.
    """
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: 9 }}
          core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_core: {228 * 2**10} shared_memory_per_block: {48 * 2**10}
          shared_memory_per_block_optin: {227 * 2**10} l2_cache_size: {50 * 2**20}
          device_memory_size: {memory * GIB:.0f} memory_bandwidth: {bandwidth:.0f}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 13 }}
        device_description_str: "{name}"
    """


def _gpu(name: str, memory: float, bandwidth: float) -> Chip:
    target = _hopper(name, memory, bandwidth)
    return Chip(989e12, bandwidth, 225e9, 50e9, 1, 0.75 * memory, target=target)


# Peak, HBM bandwidth and the sum over links: docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,
# tpu7x}. Links, data-centre network, and which dimensions close to rings: Austin et al. 2025, How
# to Scale Your Model, part 2 (jax-ml.github.io/scaling-book/tpus). The two sources differ for v5e:
# the first gives 400e9 over both directions of 4 links, which is 50e9 each; the second gives 45e9,
# which is used here.
CHIPS = {
    "v3": Chip(123e12, 900e9, 100e9, 6.25e9, 32, 15.48, devices=2),
    "v4": Chip(275e12, 1200e9, 45e9, 6.25e9, 4, 30.75),
    "v5e": Chip(197e12, 819e9, 45e9, 3.125e9, 16, 15.75),
    "v5p": Chip(459e12, 2765e9, 90e9, 6.25e9, 4, 95.74),
    "v6e": Chip(918e12, 1638e9, 90e9, 12.5e9, 16, 31.25),
    "tpu7x": Chip(2307e12, 7380e9, 90e9, 12.5e9, 4, 94.75, devices=2),
    # SXM: NVIDIA's data sheets (dense bfloat16, NVLink 900 GB/s in both directions) and the CUDA
    # programming guide (limits of 9.0); 400 Gbit/s per GPU between nodes, as in a DGX
    "h100": _gpu("NVIDIA H100 80GB HBM3", 79.1, 3.35e12),
    "h200": _gpu("NVIDIA H200", 140.4, 4.8e12),
}
