"""SEDD on two CPU cores: radd_tiny with score entropy and SEDD's time conditioning.

Not a recipe of the paper: every value is ours. config argument: process=absorb|uniform.
"""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    process = variants(arg, process=("absorb", "uniform"))["process"]
    config = radd_tiny()
    config.model.norm_bias = False  # as SEDD's network
    config.objective.name = f"sedd_{process}"
    return config
