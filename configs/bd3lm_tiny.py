"""Block diffusion on two CPU cores: RADD-tiny with another objective; every value is ours.

config argument: block=4|1|16|64, from an autoregressive model (1) to MDLM (64).
"""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(arg, block=("4", "1", "16", "64"))
    config = radd_tiny()
    config.objective.name = "bd3lm"
    config.objective.block_size = int(chosen["block"])
    config.sampler.steps = 64  # one for each token
    return config
