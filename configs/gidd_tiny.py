"""GIDD on two CPU cores in a few minutes: `radd_tiny` with masks and a fifth of redraws."""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny


def get_config() -> ConfigDict:
    config = radd_tiny()
    config.objective.name = "gidd"
    return config
