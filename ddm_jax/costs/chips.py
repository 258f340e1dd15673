"""Public figures of the machines that `aot` compiles for."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A TPU or a GPU; figures are of a chip, and of one direction of one link.

    hbm: GiB that a program may have on a device: what the compiler grants on a TPU (libtpu
    0.0.42.1, from what it says when it has too little), 75 % of a GPU's, which is what jax takes
    unless XLA_PYTHON_CLIENT_MEM_FRACTION says more; a device is a chip, or one of its `devices`
    cores. flops: peak in bfloat16, FLOP/s. hbm_bandwidth, link, dcn: bytes/s; link is one of the
    network between chips (ICI), of which a chip has two to each dimension of the torus, dcn what a
    chip has of the data centre's. GPUs of a node are a ring whose two links are half of NVLink
    each. ring: the sizes of a dimension of the torus that close to a ring are its multiples.
    target: XLA's description of a GPU, as text; empty for a TPU.
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
    """Of compute capability 9.0, with 132 multiprocessors; memory in GiB, bandwidth in bytes/s."""
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


# Peak, bandwidth of HBM, and the sum over links: docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,
# tpu7x}; links, data-centre network, and which dimensions close to rings: Austin et al. 2025, How
# to Scale Your Model, part 2 (jax-ml.github.io/scaling-book/tpus). The two differ: the first gives
# v5e 400e9 in both directions of 4 links, 50e9 each, where the second has 45e9, which is used.
CHIPS = {
    "v3": Chip(123e12, 900e9, 100e9, 6.25e9, 32, 15.48, devices=2),
    "v4": Chip(275e12, 1200e9, 45e9, 6.25e9, 4, 30.75),
    "v5e": Chip(197e12, 819e9, 45e9, 3.125e9, 16, 15.75),
    "v5p": Chip(459e12, 2765e9, 90e9, 6.25e9, 4, 95.74),
    "v6e": Chip(918e12, 1638e9, 90e9, 12.5e9, 16, 31.25),
    "tpu7x": Chip(2307e12, 7380e9, 90e9, 12.5e9, 4, 94.75, devices=2),
    # SXM: NVIDIA's data sheets (dense bfloat16, NVLink 900 GB/s both ways) and CUDA programming
    # guide (limits of 9.0); 400 Gbit/s a GPU between nodes, as in a DGX
    "h100": _gpu("NVIDIA H100 80GB HBM3", 79.1, 3.35e12),
    "h200": _gpu("NVIDIA H200", 140.4, 4.8e12),
}
