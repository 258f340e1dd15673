"""A masked language model on two CPU cores: RADD-tiny with another objective."""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = radd_tiny()
    config.objective.name = "mlm"
    return config
