"""UDLM on two CPU cores in a few minutes: `radd_tiny` with uniform noise."""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = radd_tiny()
    config.objective.name = "udlm"
    return config
