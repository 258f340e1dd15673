"""Console scripts: `ddm-train` is `python -m ddm_jax.main`, and so on.

A script runs its module as `__main__`, so that both behave alike.
"""

import functools
import runpy


def _run(module: str) -> None:
    runpy.run_module(f"ddm_jax.{module}", run_name="__main__", alter_sys=True)


def overview() -> None:
    """`ddm-jax` is `python -m ddm_jax`."""
    _run("__main__")


train = functools.partial(_run, "main")
sample = functools.partial(_run, "sample")
translate = functools.partial(_run, "translate")
evaluate = functools.partial(_run, "evaluate")
judge = functools.partial(_run, "judge")
compare = functools.partial(_run, "compare")
prepare = functools.partial(_run, "prepare")
aot = functools.partial(_run, "aot")
convert = functools.partial(_run, "convert")
