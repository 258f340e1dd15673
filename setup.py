"""The packages of a wheel: those of ddm_jax, and the folder `configs` as ddm_jax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ddm_jax*"]), "ddm_jax.configs"],
    package_dir={"ddm_jax.configs": "configs"},
)
