"""Public figures of the machines that `aot` compiles for."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A TPU chip; figures are of a chip, and of one direction of one link.

    hbm: GiB that the compiler grants to a device (libtpu 0.0.42.1, from what it says when it has
    too little); a device is a chip, or one of its `devices` cores. flops: peak in bfloat16,
    FLOP/s. hbm_bandwidth, link, dcn: bytes/s; link is one of the network between chips (ICI), of
    which a chip has two to each dimension of the torus, dcn what a chip has of the data centre's.
    ring: the sizes of a dimension of the torus that close to a ring are its multiples.
    """

    flops: float
    hbm_bandwidth: float
    link: float
    dcn: float
    ring: int
    hbm: float
    devices: int = 1


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
}
