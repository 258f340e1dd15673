"""MDLM on two CPU cores in a few minutes: radd_tiny with another objective. All values are ours."""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny


def get_config() -> ConfigDict:
    config = radd_tiny()
    config.objective.name = "mdlm"
    return config
