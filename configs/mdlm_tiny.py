"""MDLM on two CPU cores in a few minutes: radd_tiny with another objective. All values are ours."""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = radd_tiny()
    config.objective.name = "mdlm"
    return config
