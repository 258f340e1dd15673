"""MD4 and GenMD4 on two CPU cores in a few minutes: radd_tiny with another objective.

All values are ours. config argument: loss=md4|genmd4.
"""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(arg, loss=("md4", "genmd4"))
    config = radd_tiny()
    config.objective.name = chosen["loss"]
    config.schedule.name = "linear"
    return config
