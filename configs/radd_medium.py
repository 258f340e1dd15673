"""RADD-medium on OpenWebText (Ou et al. 2024): RADD-small made deeper and wider, 405M parameters.

config argument: as for radd_small.
"""

from ml_collections import ConfigDict

from configs.radd_small import get_config as radd_small


def get_config(arg: str = "") -> ConfigDict:
    config = radd_small(arg)
    config.model.width = 1024
    config.model.depth = 24
    config.model.heads = 16
    config.model.remat = "dots"
    return config
